// SPDX-License-Identifier: MIT

/**
 * @file
 * A process that shares the memory of another by clone(2) with CLONE_VM, and outlives it.
 *
 * The pager hears of the end of the other. Whoever is left in that address space may find each byte
 * as it was, or be ended by SIGBUS; what it must never see is a zero.
 */

#include "program.h"

#include <sched.h>
#include <sys/prctl.h>

#define PAGES 512ul
#define STACK_BYTES 65536ul
#define ROUNDS_MAX 2000

static char *start;
static pid_t owner;

static int outlive(UNUSED void *argument)
{
	struct timespec moment = {.tv_nsec = 1000000};

	/* It is reaped: whoever is told of its end has been told. */
	while (!kill(owner, 0))
		nanosleep(&moment, NULL);
	moment = (struct timespec){.tv_nsec = 200000000};
	nanosleep(&moment, NULL);
	verify(start, PAGES, seed, 0, "who is left");
	_exit(0);
}

static void live_with_another(void)
{
	char *stack = map_pages(STACK_BYTES / PAGE_BYTES);

	owner = getpid();
	start = map_pages(PAGES);
	fill(start, PAGES, seed, 0);
	CHECK_CALL(clone(outlive, stack + STACK_BYTES, CLONE_VM | SIGCHLD, NULL));
	for (int i = 0; i < ROUNDS_MAX && present_pages(start, PAGES) > PAGES / 8; i++)
		usleep(1000);
	_exit(0);
}

int main(void)
{
	int status;

	/* Hands of the one that ends come here, too. */
	CHECK_CALL(prctl(PR_SET_CHILD_SUBREAPER, 1));
	pid_t child = fork();
	CHECK_CALL(child);
	if (!child)
		live_with_another();
	while (wait(&status) > 0)
		CHECK((WIFEXITED(status) && !WEXITSTATUS(status)) ||
			      (WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS),
		      "a child ended with status %#x", (unsigned int)status);
	dprintf(STDOUT_FILENO, "clone_vm: ok\n");
	return 0;
}
