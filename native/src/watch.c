// SPDX-License-Identifier: MIT

/**
 * @file
 * Watching residency. See watch.h.
 */

#include "watch.h"
#include "futex.h"
#include "priority.h"
#include "uffd.h"

/*
 * How fast two cores use fresh memory up, in huge pages: look again before the room is gone. Pages
 * of 4 KiB come at a fourth of that.
 */
#define USW_GROWTH_BYTES_PER_MS (16u << 20)
#define USW_INTERVAL_MIN_NS 500000u
#define USW_INTERVAL_CALM_NS 4000000u
#define USW_INTERVAL_DOZE_NS 10000000u
#define USW_INTERVAL_MAX_NS 100000000u
/* While all sleep: what cannot ring an alarm is found by this, so it depends on the room, too. */
#define USW_INTERVAL_ASLEEP_MIN_NS 50000000u
#define USW_INTERVAL_ASLEEP_MAX_NS 250000000u
/* Between two looks while a registrar has to wait. */
#define USW_INTERVAL_WAITING_NS 100000u
/* Each time the session has grown by this meanwhile, another registrar is sent. */
#define USW_WAITING_PAGES 32
/* Of a registrar: less than a huge page, which would be taken for it where those are the rule. */
#define USW_REGISTRAR_STACK_BYTES (128u << 10)
/* Looks that found nothing new before the thread calms down, and before it dozes. */
#define USW_CALM_ROUNDS 64u
#define USW_DOZE_ROUNDS 512u
/* Looks at short intervals after a program that slept has run. */
#define USW_WAKING_ROUNDS 8u
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
	usw_futex_wake(&watch->kick, 1);
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

// --- Registering what grows ---------------------------------------------------------------------

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

	// In this order: see is_registered() in target.c.
	atomic_fetch_add(&target->registering, 1);
	atomic_fetch_add(&target->registrations, 1);
	for (uint32_t i = 0; i < count; i++) {
		struct usw_range whole = usw_maps_whole(target->maps_fd, stretches[i]);

		if (whole.start < whole.end)
			usw_uffd_register(target->uffd, whole.start, whole.end - whole.start);
	}
	atomic_fetch_sub(&target->registering, 1);
}

/**
 * Whether a target may have mappings that came since it was last registered: they changed the size
 * of its data, or took the place of one that was registered, whose unmapping raised an event.
 */
static bool has_grown(struct usw_target *target)
{
	return atomic_load(&target->state) == USW_TARGET_LIVE && atomic_load(&target->has_hands) &&
	       (atomic_load(&target->data_pages) != atomic_load(&target->watched_data_pages) ||
		atomic_load(&target->epoch) != atomic_load(&target->watched_epoch));
}

static void register_growth(struct usw_session *session)
{
	for (struct usw_target *target = usw_session_walk(session, NULL); target;
	     target = usw_session_walk(session, target)) {
		uint64_t data_pages = atomic_load(&target->data_pages);
		uint32_t epoch = atomic_load(&target->epoch);

		// Asked again, because arming may take long, and then others were there before.
		if (!has_grown(target) || usw_target_arm(target) || !has_grown(target))
			continue;
		register_stretches(target);
		// Who was overtaken stores what is older, and makes that target's turn come again.
		atomic_store(&target->watched_epoch, epoch);
		atomic_store(&target->watched_data_pages, data_pages);
	}
}

static void *registrar_main(void *argument)
{
	struct usw_registrar *registrar = argument;
	struct usw_session *session = registrar->session;

	usw_priority_hurry_most();
	while (!atomic_load(&session->stopping)) {
		if (!atomic_load(&registrar->asked)) {
			usw_futex_wait(&registrar->asked, 0, NULL);
			continue;
		}
		register_growth(session);
		// May swallow the call of usw_watch_stop(), which has set `stopping` before.
		atomic_store(&registrar->asked, 0);
	}
	return NULL;
}

static void ask(struct usw_registrar *registrar)
{
	atomic_store(&registrar->asked, 1);
	usw_futex_wake(&registrar->asked, 1);
}

/** Send a registrar that is not on its way yet, if there is one. */
static void send_registrar(struct usw_session *session)
{
	for (uint32_t i = 0; i < USW_REGISTRARS; i++) {
		struct usw_registrar *registrar = &session->watch.registrars[i];

		if (!registrar->started || atomic_load(&registrar->asked))
			continue;
		ask(registrar);
		return;
	}
}

static bool is_one_out(struct usw_session *session)
{
	for (uint32_t i = 0; i < USW_REGISTRARS; i++)
		if (atomic_load(&session->watch.registrars[i].asked))
			return true;
	return false;
}

/**
 * Those that wait have stopped the growth for a moment if they can: see watch.h. One that finds
 * nobody before it is sent at the interval of calls that cost nothing to speak of.
 */
static bool is_time_to_send(struct usw_session *session)
{
	struct usw_watch *watch = &session->watch;
	int64_t base = atomic_load(&session->resident_base);

	if (base < watch->sent_base)
		watch->sent_base = base;
	return is_one_out(session) ? base - watch->sent_base >= USW_WAITING_PAGES
				   : usw_now_ns() - watch->sent_ns >= USW_INTERVAL_MIN_NS;
}

/** Near the limit send a registrar to what has grown; true if something has. */
static bool watch_growth(struct usw_session *session)
{
	struct usw_watch *watch = &session->watch;
	bool grown = false;

	if (usw_session_room(session) > usw_watch_margin(session))
		return false;
	for (struct usw_target *target = usw_session_walk(session, NULL); target;
	     target = usw_session_walk(session, target))
		grown |= has_grown(target);
	if (grown && is_time_to_send(session)) {
		send_registrar(session);
		watch->sent_base = atomic_load(&session->resident_base);
		watch->sent_ns = usw_now_ns();
	}
	return grown;
}

// --- The thread ---------------------------------------------------------------------------------

/** How long the room lasts if it is used up as fast as two cores can; 0: there is none. */
static uint64_t room_lasts_ns(struct usw_session *session)
{
	int64_t room = usw_session_room(session);

	return room <= 0 ? 0
			 : usw_min((uint64_t)room, 1u << 30) * USW_PAGE_BYTES /
				   USW_GROWTH_BYTES_PER_MS * 1000000u;
}

static uint64_t asleep_ns(struct usw_session *session)
{
	return usw_min(usw_max(room_lasts_ns(session), USW_INTERVAL_ASLEEP_MIN_NS),
		       USW_INTERVAL_ASLEEP_MAX_NS);
}

static uint64_t interval_ns(struct usw_session *session)
{
	uint32_t rounds = session->watch.calm_rounds;
	uint64_t least = rounds > USW_DOZE_ROUNDS   ? USW_INTERVAL_DOZE_NS
			 : rounds > USW_CALM_ROUNDS ? USW_INTERVAL_CALM_NS
						    : USW_INTERVAL_MIN_NS;

	if (is_one_out(session))
		return USW_INTERVAL_WAITING_NS;
	return usw_min(usw_max(room_lasts_ns(session), least), USW_INTERVAL_MAX_NS);
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

/** Nothing moves, nothing is left to be registered, and nobody runs who could change that. */
static bool may_sleep(struct usw_session *session, bool grown)
{
	struct usw_watch *watch = &session->watch;

	return !grown && watch->calm_rounds > USW_CALM_ROUNDS &&
	       !session->config.stress_pages_per_second &&
	       usw_alarms_set(&watch->alarms, session, &watch->kick);
}

static void sleep_for_interval(struct usw_session *session, bool grown)
{
	struct usw_watch *watch = &session->watch;
	uint32_t seen = atomic_load(&watch->kick);

	atomic_store(&watch->dozing, watch->calm_rounds > USW_CALM_ROUNDS);
	bool asleep = may_sleep(session, grown);
	atomic_store(&watch->asleep, asleep);
	struct timespec timeout = {
		.tv_nsec = (long)(asleep ? asleep_ns(session) : interval_ns(session))};
	if (!atomic_load(&session->stopping))
		usw_futex_wait(&watch->kick, seen, &timeout);
	atomic_store(&watch->dozing, false);
	if (!asleep || atomic_load(&watch->kick) == seen)
		return;
	// Look often for a moment. The others are to follow: an end may be what woke us.
	atomic_store(&watch->asleep, false);
	watch->alarms.asleep = false;
	watch->calm_rounds = USW_CALM_ROUNDS - USW_WAKING_ROUNDS;
	usw_reclaim_kick(session);
}

static void *watch_main(void *argument)
{
	struct usw_session *session = argument;

	usw_priority_hurry_most();
	while (!atomic_load_explicit(&session->stopping, memory_order_relaxed)) {
		measure(session);
		note_calm(session);
		bool grown = watch_growth(session);
		if (usw_session_room(session) < usw_watch_margin(session) &&
		    session->watch.calm_rounds == 0)
			usw_reclaim_kick(session);
		sleep_for_interval(session, grown);
	}
	usw_alarms_deinit(&session->watch.alarms);
	return NULL;
}

static int start_registrars(struct usw_session *session)
{
	pthread_attr_t attributes;
	int ret = 0;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, USW_REGISTRAR_STACK_BYTES);
	for (uint32_t i = 0; !ret && i < USW_REGISTRARS; i++) {
		struct usw_registrar *registrar = &session->watch.registrars[i];

		registrar->session = session;
		ret = -pthread_create(&registrar->thread, &attributes, registrar_main, registrar);
		registrar->started = !ret;
		if (!ret)
			pthread_setname_np(registrar->thread, "uffdswap-regist");
	}
	pthread_attr_destroy(&attributes);
	return ret;
}

int usw_watch_start(struct usw_session *session)
{
	struct usw_watch *watch = &session->watch;

	int ret = start_registrars(session);
	if (ret)
		return ret;
	ret = usw_alarms_init();
	if (!ret)
		ret = -pthread_create(&watch->thread, NULL, watch_main, session);
	if (ret)
		return ret;
	watch->started = true;
	pthread_setname_np(watch->thread, "uffdswap-watch");
	return 0;
}

void usw_watch_stop(struct usw_session *session)
{
	struct usw_watch *watch = &session->watch;

	usw_watch_kick(session);
	if (watch->started)
		pthread_join(watch->thread, NULL);
	for (uint32_t i = 0; i < USW_REGISTRARS; i++) {
		struct usw_registrar *registrar = &watch->registrars[i];

		if (!registrar->started)
			continue;
		ask(registrar);
		pthread_join(registrar->thread, NULL);
	}
}
