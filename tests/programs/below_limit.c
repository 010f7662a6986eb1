// SPDX-License-Identifier: MIT

/**
 * @file
 * A program that stays under its limit, and says what it can see of itself.
 *
 *     below_limit BYTES
 *
 * It asks for huge pages, works, forks a child that works as well, and prints one JSON line with
 * what a program may look at: its thread count, its huge pages, its descriptors, its children.
 * Under a limit that it never reaches the line must be the same as bare.
 */

#include "program.h"

#include <dirent.h>
#include <fcntl.h>

/* The number after "name" in a file of such lines, -1 if it is not there. */
static long field(const char *path, const char *name)
{
	char line[256];
	long value = -1;
	FILE *file = fopen(path, "re");

	CHECK(file, "%s: %s", path, strerror(errno));
	while (value < 0 && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)))
			sscanf(line + strlen(name), " %ld", &value);
	fclose(file);
	return value;
}

static long open_descriptors(void)
{
	DIR *directory = opendir("/proc/self/fd");
	long count = -1; /* its own */

	CHECK(directory, "/proc/self/fd: %s", strerror(errno));
	for (struct dirent *entry; (entry = readdir(directory));)
		count += entry->d_name[0] != '.';
	closedir(directory);
	return count;
}

static void *map_huge(size_t bytes)
{
	char *start = map_pages((bytes + HUGE_BYTES) / PAGE_BYTES);

	start = (char *)(((uintptr_t)start + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
	madvise(start, bytes, MADV_HUGEPAGE); /* bare runs show whether there are any */
	return start;
}

int main(int argc, char **argv)
{
	size_t pages;
	char *huge;
	char *plain;
	pid_t child;

	CHECK(argc == 2, "usage: %s BYTES", argv[0]);
	pages = parse_bytes(argv[1]) / 2 / PAGE_BYTES;
	huge = map_huge(pages * PAGE_BYTES);
	plain = map_pages(pages);
	for (uint64_t round = 0; round < 8; round++) {
		fill(huge, pages, seed + round, 0);
		fill(plain, pages, seed + 2 * round, 0);
		verify(huge, pages, seed + round, 0, "huge");
		verify(plain, pages, seed + 2 * round, 0, "plain");
	}
	child = fork();
	CHECK_CALL(child);
	if (!child) {
		verify(huge, pages, seed + 7, 0, "huge, in the child");
		_exit(0);
	}
	expect_child_ok(child, "child");
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child that is not mine");
	dprintf(STDOUT_FILENO,
		"{\"threads\": %ld, \"huge_kib\": %ld, \"descriptors\": %ld, \"locked_kib\": %ld}\n",
		field("/proc/self/status", "Threads:"),
		field("/proc/self/smaps_rollup", "AnonHugePages:"), open_descriptors(),
		field("/proc/self/status", "VmLck:"));
	return 0;
}
