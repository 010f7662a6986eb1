// SPDX-License-Identifier: MIT

/**
 * @file
 * Race: fork in the middle of evictions and faults.
 *
 *     race_fork SECONDS [SEED]
 *
 * Three threads count in pages of their own without a pause. The main thread forks again and again
 * by fork() or by the bare system call, up to three children at a time. A child's memory is
 * one moment of its parent's: on each page the first word is equal to the last or one ahead, no
 * count is below what was counted before the fork or above what was counted after it. The child
 * then writes, forks once more, and all of them look again. Every other fork follows a mapping that is
 * new: it is registered at about the time at which the child gets a copy of it.
 */

#include "program.h"

#include <pthread.h>

#define WRITERS 3
#define WRITER_PAGES 512ul
#define STILL_PAGES 512ul
#define CHILDREN_MAX 3

static char *counted;            /* WRITERS stretches, one writer each */
static char *still;              /* a pattern that nobody changes once it is there */
static _Atomic uint64_t *rounds; /* shared with the children: rounds completed and begun */
static atomic_bool stop;

static void *count(void *argument)
{
	size_t id = (uintptr_t)argument;
	char *start = page_at(counted, id * WRITER_PAGES);

	for (uint64_t round = 1; !atomic_load(&stop); round++) {
		atomic_store(&rounds[2 * id + 1], round);
		for (size_t page = 0; page < WRITER_PAGES; page++) {
			volatile uint64_t *words = page_at(start, page);

			words[0] = round;
			atomic_signal_fence(memory_order_seq_cst);
			words[PAGE_WORDS - 1] = round;
		}
		atomic_store(&rounds[2 * id], round);
	}
	return NULL;
}

static void verify_moment(const uint64_t *completed, const uint64_t *begun)
{
	for (size_t page = 0; page < WRITERS * WRITER_PAGES; page++) {
		volatile uint64_t *words = page_at(counted, page);
		size_t id = page / WRITER_PAGES;
		uint64_t first = words[0];
		uint64_t last = words[PAGE_WORDS - 1];

		CHECK(first == last || first == last + 1, "page %zu is torn: %lu, %lu", page, first,
		      last);
		CHECK(last >= completed[id] && first <= begun[id],
		      "page %zu is of another time: %lu, %lu, expected %lu to %lu", page, first,
		      last, completed[id], begun[id]);
	}
	verify(still, STILL_PAGES, seed, 0, "child");
}

/* The child has no writers: what it finds must stay, while it and its own child write elsewhere. */
static void live_as_child(const uint64_t *completed)
{
	uint64_t begun[WRITERS];
	pid_t grandchild;

	for (size_t id = 0; id < WRITERS; id++)
		begun[id] = atomic_load(&rounds[2 * id + 1]);
	fill(still, STILL_PAGES / 2, seed + 1, 0);
	grandchild = fork();
	CHECK_CALL(grandchild);
	if (!grandchild) {
		verify(still, STILL_PAGES / 2, seed + 1, 0, "grandchild");
		fill(still, STILL_PAGES / 4, seed + 2, 0);
		verify(still, STILL_PAGES / 4, seed + 2, 0, "grandchild, rewritten");
		_exit(0);
	}
	verify(still, STILL_PAGES / 2, seed + 1, 0, "child, rewritten");
	expect_child_ok(grandchild, "grandchild");
	fill(still, STILL_PAGES / 2, seed, 0);
	verify_moment(completed, begun);
}

/* The pattern, in memory of which the pager knows nothing yet. */
static void renew_still(void)
{
	if (still)
		CHECK_CALL(munmap(still, STILL_PAGES * PAGE_BYTES));
	still = map_pages(STILL_PAGES);
	fill(still, STILL_PAGES, seed, 0);
}

static pid_t fork_one(uint64_t number)
{
	uint64_t completed[WRITERS];
	pid_t child;

	if (number % 2)
		renew_still();
	for (size_t id = 0; id < WRITERS; id++)
		completed[id] = atomic_load(&rounds[2 * id]);
	if (number % 4 == 3)
		child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
	else
		child = fork();
	CHECK_CALL(child);
	if (child)
		return child;
	live_as_child(completed);
	_exit(0);
}

int main(int argc, char **argv)
{
	pthread_t threads[WRITERS];
	pid_t children[CHILDREN_MAX] = {0};
	uint64_t forks = 0;
	uint64_t deadline_ns;

	seed = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
	deadline_ns = now_ns() + (argc > 1 ? strtoul(argv[1], NULL, 0) : 3) * 1000000000u;
	rounds = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(rounds != MAP_FAILED, "mmap: %s", strerror(errno));
	counted = map_pages(WRITERS * WRITER_PAGES);
	renew_still();
	for (uintptr_t i = 0; i < WRITERS; i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, count, (void *)i));
	for (; now_ns() < deadline_ns; forks++) {
		pid_t *child = &children[forks % CHILDREN_MAX];

		if (*child)
			expect_child_ok(*child, "child");
		*child = fork_one(forks);
	}
	for (size_t i = 0; i < CHILDREN_MAX; i++)
		if (children[i])
			expect_child_ok(children[i], "child");
	atomic_store(&stop, true);
	for (size_t i = 0; i < WRITERS; i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	verify(still, STILL_PAGES, seed, 0, "parent");
	dprintf(STDOUT_FILENO, "race_fork: %lu forks, ok\n", forks);
	return 0;
}
