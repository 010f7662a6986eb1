// SPDX-License-Identifier: MIT

/**
 * @file
 * Asking the scheduler. See priority.h.
 */

#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "priority.h"

/** Soon and briefly; -20 is the highest weight, 0 that of a program. */
static void hurry(int task_id, int nice)
{
	// struct sched_attr; its header is not to be had together with <sched.h> everywhere.
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime_ns, deadline_ns, period_ns;
	} attributes = {.size = 48, .nice = nice, .runtime_ns = 100000};

	if (syscall(SYS_sched_setattr, task_id, &attributes, 0) == 0)
		return;
	// A higher weight is a privilege, a shorter slice is not.
	attributes.nice = getpriority(PRIO_PROCESS, (id_t)task_id);
	syscall(SYS_sched_setattr, task_id, &attributes, 0);
}

void usw_priority_hurry(int task_id)
{
	hurry(task_id, -20);
}

void usw_priority_hurry_less(void)
{
	hurry(0, -10);
}

int usw_priority_nice(void)
{
	return getpriority(PRIO_PROCESS, 0);
}

void usw_priority_hurry_no_more(int nice)
{
	hurry(0, nice);
}

void usw_priority_hurry_most(void)
{
	const struct sched_param first = {.sched_priority = 1};

	if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &first))
		usw_priority_hurry(0);
}

void usw_priority_wait(void)
{
	const struct sched_param none = {.sched_priority = 0};

	pthread_setschedparam(pthread_self(), SCHED_IDLE, &none);
}

void usw_priority_wait_no_more(pthread_t thread)
{
	const struct sched_param none = {.sched_priority = 0};

	pthread_setschedparam(thread, SCHED_OTHER, &none);
}

void usw_priority_yield(void)
{
	sched_yield();
}
