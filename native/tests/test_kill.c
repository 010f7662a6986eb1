// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: what is said of a target that had to be killed is what has become of it.
 * Method: children of our own and of another user, without the right to kill those; the test
 * program itself needs no session for that, only the queue of its news.
 */

#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "session.h"

#define NOBODY 65534

static struct usw_session session;

/** A child that sleeps, of another user if that is wanted; ends when we do not want it any more. */
static pid_t sleeper(bool is_others)
{
	int ready[2];
	char byte;

	CHECK_EQ(pipe(ready), 0);
	pid_t child = fork();
	if (!child) {
		if (is_others && syscall(SYS_setuid, NOBODY))
			_exit(1);
		if (write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	CHECK_EQ(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	return child;
}

static struct usw_target *target_of(pid_t child)
{
	struct usw_target *target = usw_target_create(&session);

	CHECK(target);
	target->pid = child ? child : -1;
	target->pidfd = child ? (int)syscall(SYS_pidfd_open, child, 0) : -1;
	CHECK(!child || target->pidfd >= 0);
	return target;
}

/** Kill it twice: the kind of the only news; USW_EVENT_NONE: there is none. */
static int kill_and_hear(struct usw_target *target)
{
	struct usw_event event = {0}, more;

	usw_target_kill(target, "why");
	usw_target_kill(target, "why");
	if (!usw_session_next_event(&session, &event))
		return USW_EVENT_NONE;
	CHECK(!usw_session_next_event(&session, &more));
	CHECK_EQ(event.pid, target->pid);
	CHECK(strcmp(event.text, "why") == 0);
	return event.kind;
}

static void test_one_that_is_killed(void)
{
	pid_t child = sleeper(false);
	struct usw_target *target = target_of(child);
	int status;

	CHECK_EQ(kill_and_hear(target), USW_EVENT_TARGET_KILLED);
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	usw_target_destroy(target);
}

static void test_one_that_has_ended_by_itself(void)
{
	pid_t child = sleeper(false);
	struct usw_target *target = target_of(child);

	kill(child, SIGKILL);
	CHECK_EQ(waitpid(child, NULL, 0), child);
	CHECK_EQ(kill_and_hear(target), USW_EVENT_NONE);
	usw_target_destroy(target);
}

static void test_one_that_has_not_said_who_it_is(void)
{
	struct usw_target *target = target_of(0);

	CHECK_EQ(kill_and_hear(target), USW_EVENT_NOT_KILLED);
	usw_target_destroy(target);
}

static void set_kill_right(bool has)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	CHECK_EQ(syscall(SYS_capget, &header, data), 0);
	data[0].effective &= ~(1u << CAP_KILL);
	data[0].effective |= has ? 1u << CAP_KILL : 0;
	CHECK_EQ(syscall(SYS_capset, &header, data), 0);
}

static void test_one_that_is_another_users(void)
{
	if (geteuid() != 0)
		return; // there is no other user to be
	pid_t child = sleeper(true);
	struct usw_target *target = target_of(child);

	set_kill_right(false);
	int kind = kill_and_hear(target);
	set_kill_right(true);
	CHECK_EQ(kind, USW_EVENT_NOT_KILLED);
	CHECK_EQ(waitpid(child, NULL, WNOHANG), 0);
	kill(child, SIGKILL);
	CHECK_EQ(waitpid(child, NULL, 0), child);
	usw_target_destroy(target);
}

int main(void)
{
	session.events.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	pthread_mutex_init(&session.events.lock, NULL);
	test_one_that_is_killed();
	test_one_that_has_ended_by_itself();
	test_one_that_has_not_said_who_it_is();
	test_one_that_is_another_users();
	return 0;
}
