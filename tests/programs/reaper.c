// SPDX-License-Identifier: MIT

/**
 * @file
 * A program that inherits orphans, as supervisors and the first processes of containers do: all
 * children that it ever sees are its own and those that ended below it.
 *
 *     reaper MIB [subreaper|exec]...
 *
 * Each word is done first, and the rest left to another image: become a child subreaper; only be
 * another image. Then memory is filled, and checked after all children have been waited for.
 */

#include "program.h"

#include <sys/prctl.h>

#define PATIENCE_S 30
#define CHILD_STATUS 3

static volatile sig_atomic_t signals_seen;

static void on_child(int number)
{
	(void)number;
	signals_seen++;
}

/* A handler, because the first process of a PID namespace ignores the signal without one. */
static void on_alarm(int number)
{
	(void)number;
	fail("waited %d s for a child that is none", PATIENCE_S);
}

/* The next image's turn: the words that are left. */
static void become(char **arguments, char **rest)
{
	char *next[16] = {arguments[0], arguments[1]};
	int count = 2;

	while (*rest && count < 15)
		next[count++] = *rest++;
	execv("/proc/self/exe", next);
	fail("execv: %s", strerror(errno));
}

static void expect_no_child(const char *when)
{
	pid_t reaped = waitpid(-1, NULL, WNOHANG);

	CHECK(reaped == -1 && errno == ECHILD, "%s: waitpid says %d", when, reaped);
	/* The helper task of the first process of a namespace can be seen this way, but running. */
	reaped = waitpid(-1, NULL, WNOHANG | __WALL);
	CHECK(reaped <= 0, "%s: zombie %d", when, reaped);
	CHECK(!signals_seen, "%s: SIGCHLD came %d times", when, (int)signals_seen);
}

/* A child of ours with one of its own: whatever else comes back has ended well below us. */
static void have_children(void)
{
	pid_t child = fork();
	bool came_back = false;
	pid_t reaped;
	int status;

	CHECK_CALL(child);
	if (!child) {
		pid_t grandchild = fork();

		CHECK_CALL(grandchild);
		if (!grandchild)
			_exit(0);
		expect_child_ok(grandchild, "grandchild");
		_exit(CHILD_STATUS);
	}
	while ((reaped = wait(&status)) > 0 || errno == EINTR) {
		if (reaped == child)
			came_back = WIFEXITED(status) && WEXITSTATUS(status) == CHILD_STATUS;
		else if (reaped > 0)
			CHECK(status == 0, "process %d ended with %#x", reaped, (unsigned)status);
	}
	CHECK(errno == ECHILD, "wait: %s", strerror(errno));
	CHECK(came_back, "the child did not come back as it ended");
}

int main(int argc, char **argv)
{
	size_t pages = argc >= 2 ? (size_t)atoi(argv[1]) * 256 : 0;
	void *start;

	if (argc > 2 && !strcmp(argv[2], "subreaper"))
		CHECK_CALL(prctl(PR_SET_CHILD_SUBREAPER, 1));
	if (argc > 2)
		become(argv, argv + 3);
	signal(SIGCHLD, on_child);
	signal(SIGALRM, on_alarm);
	alarm(PATIENCE_S);
	start = map_pages(pages);
	fill(start, pages, seed, 0);
	expect_no_child("at the start");
	have_children();
	verify(start, pages, seed, 0, "after the children");
	return 0;
}
