// SPDX-License-Identifier: MIT

/**
 * @file
 * A program that links the shim and asks whether it is managed: holds MIB of the pattern and checks
 * it when told.
 *
 *     linked MIB
 *
 * Prints "ready, managed 0|1"; then "check" answers "right", "fork" makes a child that prints
 * "child PID, managed 0|1" and checks when it gets SIGUSR1, and "wait" answers "child right".
 */

#include "program.h"

#include <uffdswap.h>

static void child_run(const void *start, size_t pages, const sigset_t *signals)
{
	int number;

	dprintf(STDOUT_FILENO, "child %d, managed %d\n", getpid(), uffdswap_is_managed());
	CHECK(!sigwait(signals, &number), "sigwait failed");
	verify(start, pages, seed, 0, "child");
	_exit(0);
}

static pid_t child_fork(const void *start, size_t pages)
{
	sigset_t signals;
	pid_t child;

	sigemptyset(&signals);
	sigaddset(&signals, SIGUSR1);
	CHECK_CALL(sigprocmask(SIG_BLOCK, &signals, NULL));
	child = fork();
	CHECK_CALL(child);
	if (!child)
		child_run(start, pages, &signals);
	return child;
}

int main(int argc, char **argv)
{
	size_t pages = argc == 2 ? (size_t)atoi(argv[1]) * 256 : 0;
	void *start = map_pages(pages);
	pid_t child = 0;
	char line[64];

	fill(start, pages, seed, 0);
	dprintf(STDOUT_FILENO, "ready, managed %d\n", uffdswap_is_managed());
	while (fgets(line, sizeof(line), stdin)) {
		if (!strcmp(line, "check\n")) {
			verify(start, pages, seed, 0, "check");
			dprintf(STDOUT_FILENO, "right\n");
		} else if (!strcmp(line, "fork\n")) {
			child = child_fork(start, pages);
		} else if (!strcmp(line, "wait\n")) {
			expect_child_ok(child, "child");
			dprintf(STDOUT_FILENO, "child right\n");
		}
	}
	return 0;
}
