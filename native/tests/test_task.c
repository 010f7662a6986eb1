// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a process has memory for as long as any of its threads has, and none when it has ended.
 * Method: children that have ended and are not reaped, and one whose first thread has.
 */

#include "check.h"
#include "task.h"

#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/** Wait until a child has ended, and leave it there. */
static void wait_for_end(pid_t child)
{
	siginfo_t info;

	CHECK_THAT(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), ==, 0);
}

static void end(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void *sleep_on(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void test_a_process_that_lives(void)
{
	char text[64] = "";
	int fd = usw_task_open(getpid(), "statm");

	CHECK_THAT(usw_task_has_memory(getpid()), ==, 1);
	CHECK_THAT(fd, >=, 0);
	CHECK_THAT(read(fd, text, sizeof(text) - 1), >, 0);
	CHECK_THAT(atoi(text), >, 0);
	close(fd);
	CHECK_THAT(usw_task_open(getpid(), "no such file"), ==, -ENOENT);
}

static void test_a_process_that_has_ended(void)
{
	pid_t child = fork();

	if (!child)
		_exit(0);
	wait_for_end(child);
	CHECK_THAT(usw_task_has_memory(child), ==, 0);
	CHECK_THAT(usw_task_open(child, "statm"), ==, -ESRCH);
	end(child);
	CHECK_THAT(usw_task_has_memory(child), ==, 0);
	CHECK_THAT(usw_task_open(child, "statm"), ==, -ESRCH);
}

static void test_a_process_without_its_first_thread(void)
{
	char text[64] = "";
	pid_t child = fork();

	if (!child) {
		pthread_t other;

		pthread_create(&other, NULL, sleep_on, NULL);
		pthread_exit(NULL);
	}
	for (int i = 0; i < 5000 && usw_task_has_memory(child); i++)
		usleep(1000);
	CHECK_THAT(usw_task_has_memory(child), ==, 0);

	int fd = usw_task_open(child, "statm");
	CHECK_THAT(fd, >=, 0);
	CHECK_THAT(read(fd, text, sizeof(text) - 1), >, 0);
	CHECK_THAT(atoi(text), >, 0);
	close(fd);
	end(child);
}

static void test_a_thread_in_a_call(void)
{
	pid_t child = fork();

	if (!child)
		sleep_on(NULL);
	for (int i = 0; i < 5000 && !usw_task_is_in(child, (uint32_t)child, SYS_pause); i++)
		usleep(1000);
	CHECK_THAT(usw_task_is_in(child, (uint32_t)child, SYS_pause), ==, 1);
	CHECK_THAT(usw_task_is_in(child, (uint32_t)child, SYS_mremap), ==, 0);
	end(child);
	CHECK_THAT(usw_task_is_in(child, (uint32_t)child, SYS_pause), ==, 0);
	CHECK_THAT(usw_task_is_in(getpid(), (uint32_t)getpid(), SYS_pause), ==, 0);
}

int main(void)
{
	test_a_process_that_lives();
	test_a_process_that_has_ended();
	test_a_process_without_its_first_thread();
	test_a_thread_in_a_call();
	return 0;
}
