// SPDX-License-Identifier: MIT

/**
 * @file
 * Running where the program runs. See follow.h.
 */

#include <sched.h>
#include <string.h>

#include "follow.h"
#include "task.h"

/* How often to look where the threads run that fault: 5 us each time. */
#define USW_FOLLOW_NS 1000000u
/* From so many pages a fault on a program walks. */
#define USW_WALK_PAGES 16u
/* Numbers of fields in /proc/PID/stat, counted from 1 (proc_pid_stat(5)). */
#define USW_STAT_PROCESSOR 39
#define USW_STAT_POLICY 41

/** A value behind the name in a line of a stat file; -1: there is none. */
static int read_field(const char *text, int wanted)
{
	// "pid (name) state ...": the name may hold anything, so count from its end.
	const char *field = strrchr(text, ')');

	for (int number = 2; field && number < wanted; number++)
		field = strchr(field + 1, ' ');
	return field ? atoi(field) : -1;
}

/** The processor that a thread last ran on; -1: not to be had, or not to be shared with it. */
static int processor_of(int pid, uint32_t thread_id)
{
	char text[512];

	if (!usw_task_read(pid, thread_id, "stat", text, sizeof(text)))
		return -1;
	int policy = read_field(text, USW_STAT_POLICY);
	bool is_shared = policy == SCHED_OTHER || policy == SCHED_BATCH || policy == SCHED_IDLE;
	return is_shared ? read_field(text, USW_STAT_PROCESSOR) : -1;
}

/** To one processor, or -1: to all. */
static void move_to(int task_id, int processor)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (processor < 0 || i == processor)
			CPU_SET((unsigned int)i, &set);
	sched_setaffinity(task_id, sizeof(set), &set); // not allowed there: then not
}

/** True if a program has walked since the last look: a fault brought in a whole window, mostly. */
static bool has_walked(struct usw_fault_thread *thread)
{
	uint64_t faults =
		atomic_load_explicit(&thread->counters.faults_total, memory_order_relaxed);
	uint64_t pages =
		atomic_load_explicit(&thread->counters.prefetched_pages, memory_order_relaxed);
	bool walked = pages - thread->followed_pages >
		      USW_WALK_PAGES * (faults - thread->followed_faults);

	thread->followed_faults = faults;
	thread->followed_pages = pages;
	return walked;
}

void usw_follow(struct usw_fault_thread *thread, struct usw_target *target, uint32_t thread_id,
		uint64_t now_ns)
{
	if (now_ns - thread->followed_ns < USW_FOLLOW_NS || !thread_id || target->pid <= 0)
		return;
	thread->followed_ns = now_ns;

	int processor = processor_of(target->pid, thread_id);
	if (processor != thread->processor)
		move_to(0, processor);
	thread->processor = processor;
	if (has_walked(thread)) {
		usw_follow_let_go(target);
		return;
	}
	int hands_pid = (int)atomic_load_explicit(&target->hands_pid, memory_order_relaxed);
	if (hands_pid && atomic_exchange(&target->hands_processor, processor) != processor)
		move_to(hands_pid, processor);
}

void usw_follow_let_go(struct usw_target *target)
{
	int hands_pid = (int)atomic_load_explicit(&target->hands_pid, memory_order_relaxed);

	if (hands_pid && atomic_exchange(&target->hands_processor, -1) >= 0)
		move_to(hands_pid, -1);
}
