// SPDX-License-Identifier: MIT

/**
 * @file
 * Memory that takes the place of what a child did not inherit.
 *
 * The parent's pages are out or in, and marked MADV_DONTFORK. The child maps memory of its own at
 * their addresses, which is no business of anybody's until the pager has registered it: what is
 * written there has to come back when it was evicted, and what was not written is zero. Far below
 * the limit, where nothing is registered that is not evicted from (use --stress).
 *
 * Usage: race_missing [SECONDS [SEED]]
 */

#include "program.h"

#define PAGES 512ul
#define ROUNDS_MAX 200

/* Until most of it has been out, or a moment in a bare run. */
static void wait_for_eviction(const void *start)
{
	for (int i = 0; i < ROUNDS_MAX && present_pages(start, PAGES) > PAGES / 8; i++)
		usleep(1000);
}

static void live_as_child(char *start)
{
	CHECK(mmap(start, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == start,
	      "mmap: %s", strerror(errno));
	verify_zero(start, PAGES / 2, "mapped anew");
	fill(start, PAGES, seed + 1, 0);
	for (int round = 0; round < 3; round++) {
		wait_for_eviction(start);
		verify(start, PAGES, seed + 1, 0, "written by the child");
	}
}

int main(int argc, char **argv)
{
	uint64_t deadline_ns =
		now_ns() + (argc > 1 ? strtoul(argv[1], NULL, 0) : 3) * 1000000000u;
	char *start = map_pages(PAGES);
	uint64_t forks = 0;

	seed = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
	CHECK_CALL(madvise(start, PAGES * PAGE_BYTES, MADV_DONTFORK));
	fill(start, PAGES, seed, 0);
	for (; now_ns() < deadline_ns; forks++) {
		wait_for_eviction(start);
		pid_t child = fork();

		CHECK_CALL(child);
		if (!child) {
			live_as_child(start);
			_exit(0);
		}
		expect_child_ok(child, "child");
		verify(start, PAGES, seed, 0, "parent");
	}
	dprintf(STDOUT_FILENO, "%lu forks: ok\n", forks);
	return 0;
}
