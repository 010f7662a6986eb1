// SPDX-License-Identifier: MIT

/**
 * @file
 * Watching residency. See watch.h.
 */

#include <linux/futex.h>
#include <sys/syscall.h>

#include "uffd.h"
#include "watch.h"

/*
 * How fast two cores use fresh memory up, in huge pages: look again before the room is gone. Pages
 * of 4 KiB come at a fourth of that.
 */
#define USW_GROWTH_BYTES_PER_MS (16u << 20)
#define USW_INTERVAL_MIN_NS 500000u
#define USW_INTERVAL_CALM_NS 4000000u
#define USW_INTERVAL_DOZE_NS 10000000u
#define USW_INTERVAL_MAX_NS 100000000u
/* Looks that found nothing new before the thread calms down, and before it dozes. */
#define USW_CALM_ROUNDS 64u
#define USW_DOZE_ROUNDS 512u
/* Growing memory is registered when the limit is this near at the present rate, or by pages. */
#define USW_HORIZON_MS 25
#define USW_MARGIN_MIN_BYTES (16 << 20)
#define USW_MARGIN_MAX_BYTES (64 << 20)

void usw_watch_kick(struct usw_session *session)
{
	struct usw_watch *watch = &session->watch;

	if (!atomic_load_explicit(&watch->dozing, memory_order_relaxed) &&
	    !atomic_load_explicit(&session->stopping, memory_order_relaxed))
		return;
	atomic_fetch_add(&watch->kick, 1);
	syscall(SYS_futex, &watch->kick, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

int64_t usw_watch_margin(const struct usw_session *session)
{
	int64_t limit = atomic_load(&session->limit_pages);
	int64_t margin = limit / 16;
	int64_t soon = atomic_load(&session->watch.growth_pages_per_ms) * USW_HORIZON_MS;
	const int64_t least = USW_MARGIN_MIN_BYTES / USW_PAGE_BYTES;
	const int64_t most = USW_MARGIN_MAX_BYTES / USW_PAGE_BYTES;

	margin = margin < soon ? soon : margin;
	margin = margin < least ? least : margin > most ? most : margin;
	return margin < limit / 2 ? margin : limit / 2;
}

/** Learn how fast the session grows: believe in more at once, in less by and by. */
static void learn_growth(struct usw_watch *watch, int64_t pages, uint64_t now_ns)
{
	int64_t before = atomic_load(&watch->growth_pages_per_ms);
	int64_t us = (int64_t)((now_ns - watch->measured_ns) / 1000);
	int64_t rate = us > 0 && pages > watch->last_base ? (pages - watch->last_base) * 1000 / us
							  : 0;

	atomic_store(&watch->growth_pages_per_ms, rate > before ? rate : before - before / 8);
	watch->measured_ns = now_ns;
}

/** Ask the kernel how much every target has. */
static void measure(struct usw_session *session)
{
	int64_t before = atomic_load(&session->resident_delta);
	int64_t pages = 0;

	for (struct usw_target *target = usw_session_walk(session, NULL); target;
	     target = usw_session_walk(session, target)) {
		if (atomic_load(&target->state) == USW_TARGET_LIVE && usw_target_measure(target))
			pages += (int64_t)target->anon_pages;
	}
	learn_growth(&session->watch, pages, usw_now_ns());
	// What was charged while we asked may be counted twice until the next time; never missed.
	atomic_store(&session->resident_base, pages);
	atomic_fetch_sub(&session->resident_delta, before);
	if ((uint64_t)pages * USW_PAGE_BYTES > atomic_load(&session->resident_peak_bytes))
		atomic_store(&session->resident_peak_bytes, (uint64_t)pages * USW_PAGE_BYTES);
}

/** The first registration of all. */
static bool arm(struct usw_target *target)
{
	pthread_mutex_lock(&target->map_lock);
	int ret = usw_target_arm(target);
	pthread_mutex_unlock(&target->map_lock);
	return ret == 0;
}

/**
 * Register every stretch of a target anew, which costs nothing for what is registered already.
 * A stretch with something else in it by now is refused as a whole: then it is up to the reclaim
 * thread, which looks at every mapping.
 */
static void register_stretches(struct usw_target *target)
{
	struct usw_range stretches[USW_STRETCHES_MAX];
	uint32_t count;

	pthread_mutex_lock(&target->stretches_lock);
	count = target->stretch_count;
	for (uint32_t i = 0; i < count; i++)
		stretches[i] = target->stretches[i];
	pthread_mutex_unlock(&target->stretches_lock);

	// Odd while it goes on: see is_registered() in target.c.
	atomic_fetch_add(&target->registrations, 1);
	for (uint32_t i = 0; i < count; i++)
		usw_uffd_register(target->uffd, stretches[i].start,
				  stretches[i].end - stretches[i].start);
	atomic_fetch_add(&target->registrations, 1);
}

/**
 * Register what is new. A mapping that came since the last look changed the size of the target's
 * data, or took the place of one that was registered, whose unmapping raised an event.
 */
static void watch_growth(struct usw_session *session)
{
	if (usw_session_room(session) > usw_watch_margin(session))
		return;
	for (struct usw_target *target = usw_session_walk(session, NULL); target;
	     target = usw_session_walk(session, target)) {
		uint64_t data_pages = atomic_load(&target->data_pages);
		uint32_t epoch = atomic_load(&target->epoch);

		if (atomic_load(&target->state) != USW_TARGET_LIVE ||
		    !atomic_load(&target->has_hands) ||
		    (data_pages == target->watched_data_pages && epoch == target->watched_epoch) ||
		    !arm(target))
			continue;
		target->watched_epoch = epoch;
		target->watched_data_pages = data_pages;
		register_stretches(target);
	}
}

static uint64_t interval_ns(struct usw_session *session)
{
	uint32_t rounds = session->watch.calm_rounds;
	int64_t room = usw_session_room(session);
	uint64_t least = rounds > USW_DOZE_ROUNDS   ? USW_INTERVAL_DOZE_NS
			 : rounds > USW_CALM_ROUNDS ? USW_INTERVAL_CALM_NS
						    : USW_INTERVAL_MIN_NS;

	if (room <= 0)
		return least;
	uint64_t by_room = usw_min((uint64_t)room, 1u << 30) * USW_PAGE_BYTES /
			   USW_GROWTH_BYTES_PER_MS * 1000000u;
	return usw_min(usw_max(by_room, least), USW_INTERVAL_MAX_NS);
}

/** Count how long nothing has moved: neither residency nor faults. */
static void note_calm(struct usw_session *session)
{
	struct usw_watch *watch = &session->watch;
	int64_t base = atomic_load(&session->resident_base);
	uint32_t clock = atomic_load(&session->fault_clock);

	watch->calm_rounds =
		base == watch->last_base && clock == watch->last_clock ? watch->calm_rounds + 1 : 0;
	watch->last_base = base;
	watch->last_clock = clock;
}

static void sleep_for_interval(struct usw_session *session)
{
	struct usw_watch *watch = &session->watch;
	uint32_t seen = atomic_load(&watch->kick);
	struct timespec timeout = {.tv_nsec = (long)interval_ns(session)};

	atomic_store(&watch->dozing, watch->calm_rounds > USW_CALM_ROUNDS);
	if (!atomic_load(&session->stopping))
		syscall(SYS_futex, &watch->kick, FUTEX_WAIT_PRIVATE, seen, &timeout, NULL, 0);
	atomic_store(&watch->dozing, false);
}

void *usw_watch_main(void *argument)
{
	struct usw_session *session = argument;

	usw_session_hurry(0);
	while (!atomic_load_explicit(&session->stopping, memory_order_relaxed)) {
		measure(session);
		note_calm(session);
		watch_growth(session);
		if (usw_session_room(session) < usw_watch_margin(session) &&
		    session->watch.calm_rounds == 0)
			usw_reclaim_kick(session);
		sleep_for_interval(session);
	}
	return NULL;
}
