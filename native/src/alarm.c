// SPDX-License-Identifier: MIT

/**
 * @file
 * Timers on other processes' clocks. See alarm.h.
 */

#include <errno.h>
#include <sys/syscall.h>

#include "alarm.h"
#include "session.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define USW_ALARM_SIGNAL (SIGRTMIN + 3)
/* How long targets must have slept, which a hundredth of it does not interrupt. */
#define USW_ALARM_LOOK_NS 100000000u
/* What a target may run before its alarm: nothing to speak of, but not every tick is one. */
#define USW_ALARM_RUN_NS 100000

static void rang(int signal_number, siginfo_t *info, void *context)
{
	_Atomic uint32_t *futex = info->si_value.sival_ptr;

	(void)signal_number;
	(void)context;
	// Whoever is about to wait for its old value does not; the wait itself ends with EINTR.
	if (info->si_code == SI_TIMER)
		atomic_fetch_add(futex, 1);
}

int usw_alarms_init(void)
{
	struct sigaction action = {.sa_sigaction = rang, .sa_flags = SA_SIGINFO};

	return sigaction(USW_ALARM_SIGNAL, &action, NULL) < 0 ? -errno : 0;
}

void usw_alarms_deinit(struct usw_alarms *alarms)
{
	for (uint32_t i = 0; i < USW_ALARMS_MAX; i++)
		if (alarms->at[i].target_id)
			timer_delete(alarms->at[i].timer);
	*alarms = (struct usw_alarms){0};
}

/** The alarm of a target, made if there is none; NULL if that cannot be. */
static struct usw_alarm *find_alarm(struct usw_alarms *alarms, const struct usw_target *target,
				    clockid_t clock, _Atomic uint32_t *futex)
{
	struct usw_alarm *unused = NULL;

	for (uint32_t i = 0; i < USW_ALARMS_MAX; i++) {
		if (alarms->at[i].target_id == target->id)
			return &alarms->at[i];
		if (!alarms->at[i].target_id && !unused)
			unused = &alarms->at[i];
	}
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = USW_ALARM_SIGNAL,
		.sigev_value.sival_ptr = (void *)futex,
	};
	event.sigev_notify_thread_id = (int)syscall(SYS_gettid);
	timer_t timer;
	if (!unused || timer_create(clock, &event, &timer) < 0)
		return NULL;
	*unused = (struct usw_alarm){.target_id = target->id, .timer = timer};
	return unused;
}

/** Set the alarm of one target. Adds how long it ran since it was last looked at. */
static bool set_alarm(struct usw_alarms *alarms, const struct usw_target *target,
		      _Atomic uint32_t *futex, uint64_t *ran_ns)
{
	const struct itimerspec soon = {.it_value.tv_nsec = USW_ALARM_RUN_NS};
	struct timespec ran;
	clockid_t clock;

	if (clock_getcpuclockid(target->pid, &clock) || clock_gettime(clock, &ran) < 0)
		return false;
	struct usw_alarm *alarm = find_alarm(alarms, target, clock, futex);
	if (!alarm || timer_settime(alarm->timer, 0, &soon, NULL) < 0)
		return false;

	uint64_t now_ns = (uint64_t)ran.tv_sec * 1000000000u + (uint64_t)ran.tv_nsec;
	// Of one that is new nothing is known: it is not taken for asleep.
	*ran_ns += alarm->pass ? now_ns - alarm->ran_ns : USW_ALARM_LOOK_NS;
	alarm->ran_ns = now_ns;
	alarm->pass = alarms->pass;
	return true;
}

/** All alarms set? False also while a target is there whose clock cannot be known. */
static bool set_all(struct usw_alarms *alarms, struct usw_session *session, _Atomic uint32_t *futex,
		    uint64_t *ran_ns)
{
	bool all = true;

	alarms->pass++;
	for (struct usw_target *target = usw_session_walk(session, NULL); target;
	     target = usw_session_walk(session, target))
		if (atomic_load(&target->state) == USW_TARGET_LIVE &&
		    (!atomic_load(&target->has_hands) || !set_alarm(alarms, target, futex, ran_ns)))
			all = false;
	for (uint32_t i = 0; i < USW_ALARMS_MAX; i++) {
		struct usw_alarm *alarm = &alarms->at[i];

		if (!alarm->target_id || alarm->pass == alarms->pass)
			continue;
		timer_delete(alarm->timer);
		alarm->target_id = 0;
	}
	return all;
}

bool usw_alarms_set(struct usw_alarms *alarms, struct usw_session *session, _Atomic uint32_t *futex)
{
	uint64_t now_ns = usw_now_ns();
	uint64_t ran_ns = 0;

	// Between two looks what was found by the last one stands.
	if (now_ns - alarms->looked_ns < USW_ALARM_LOOK_NS && !alarms->asleep)
		return false;
	uint64_t slept_ns = usw_min(now_ns - alarms->looked_ns, 1000000000u);
	bool all = set_all(alarms, session, futex, &ran_ns);
	alarms->asleep = all && alarms->looked_ns && ran_ns < slept_ns / 100;
	alarms->looked_ns = now_ns;
	return alarms->asleep;
}
