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
/* A search for a thread that is below is followed by a rest of so many times its own time. */
#define USW_SEARCH_RESTS 32u
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

/**
 * The number here of the thread that has faulted. What it takes to find one that is below is not
 * worth it for every fault: the last one is kept, and a search is followed by a rest.
 */
static uint32_t find_thread(struct usw_fault_thread *thread, const struct usw_target *target,
			    const struct usw_fault *fault)
{
	struct usw_followed *last = &thread->followed;

	if (!target->is_below)
		return fault->thread_id;
	if (last->target_id == target->id && last->own_id == fault->thread_id && last->number)
		return last->number;
	uint64_t start_ns = usw_now_ns();
	*last = (struct usw_followed){.target_id = target->id,
				      .own_id = fault->thread_id,
				      .number = usw_target_thread(target, fault)};
	thread->follow_due_ns += USW_SEARCH_RESTS * (usw_now_ns() - start_ns);
	return last->number;
}

void usw_follow(struct usw_fault_thread *thread, struct usw_target *target,
		const struct usw_fault *fault)
{
	if (fault->since_ns < thread->follow_due_ns || !fault->thread_id || target->pid <= 0)
		return;
	thread->follow_due_ns = fault->since_ns + USW_FOLLOW_NS;

	int processor = processor_of(target->pid, find_thread(thread, target, fault));
	if (processor < 0)
		thread->followed.number = 0; // it has ended, perhaps
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
