// SPDX-License-Identifier: MIT

/**
 * @file
 * Bringing pages in before they are asked for. See prefetch.h.
 */

#include <errno.h>

#include "answer.h"
#include "content.h"
#include "diskanswer.h"
#include "guard.h"
#include "park.h"
#include "prefetch.h"
#include "session.h"
#include "uffd.h"

/* With so much room the limit is far away: 64 MiB. */
#define USW_FAR_PAGES 16384

/*
 * Windows of a walk over a disk that are read ahead of the one that is brought in: what keeps the
 * disk at work. More gain nothing.
 */
#define USW_RESERVE_WINDOWS 2u

/* So much memory is looked over for guards at once; more takes longer than a look at each run. */
#define USW_LOOK_PAGES 1024u

/** Evicted pages in a row, their content side by side in the thread's window. */
struct run {
	struct usw_range clear; /* of guards: all that has been looked over */
	uint64_t start;
	uint32_t count;
	usw_page_word *word[USW_STREAM_WINDOW_MAX];
	uint64_t now[USW_STREAM_WINDOW_MAX];
	enum usw_backend backend[USW_STREAM_WINDOW_MAX];
	struct usw_access access; /* as that of the fault, but ahead of it */
};

/** Begin with runs in [start, end). */
static struct run begin_runs(const struct usw_target *target, const struct usw_fault *fault,
			     uint64_t start, uint64_t end)
{
	uint64_t pages = (end - start) / USW_PAGE_BYTES;
	struct run run = {.clear = {start, start}, .access = usw_answer_access(fault)};

	run.access.touches = false;
	if (end > start && pages <= USW_LOOK_PAGES)
		run.clear.end += USW_PAGE_BYTES *
				 (uint64_t)usw_guards_before(target, start, (uint32_t)pages);
	return run;
}

/** How many pages of a run may be brought in. */
static uint32_t clear_pages(struct usw_target *target, const struct run *run)
{
	uint64_t end = run->start + (uint64_t)run->count * USW_PAGE_BYTES;

	if (run->clear.start <= run->start && end <= run->clear.end)
		return run->count;
	return usw_guards_clip(target, run->start, run->count);
}

/** Bring a run in with one call. What does not go in stays evicted: nobody has asked for it yet. */
static bool bring_in(struct usw_fault_thread *thread, struct usw_target *target, struct run *run)
{
	uint64_t done = 0;
	uint32_t count = run->count;
	uint32_t clear = clear_pages(target, run);

	run->count = 0;
	if (!clear)
		return !count;
	usw_uffd_copy(target->uffd, run->start, thread->window, (uint64_t)clear * USW_PAGE_BYTES,
		      &done);
	uint32_t brought = (uint32_t)(done / USW_PAGE_BYTES);
	for (uint32_t i = 0; i < brought; i++)
		usw_answer_settle(thread, run->word[i], run->now[i], run->backend[i], false,
				  run->access);
	usw_session_charge(thread->session, brought);
	usw_count(&thread->counters, prefetched_pages, brought);
	return brought == count;
}

/**
 * A long stream over pages on a disk with the limit far away: a program wakes up. Then whole
 * segments are read ahead of it. Near the limit they are not: their pages would have to leave
 * again, and a page that is read alone keeps its copy on the disk.
 */
static bool wakes_up(const struct usw_session *session, const struct usw_target *target,
		     const struct usw_forecast *forecast, uint64_t address,
		     const struct usw_disk_place *place)
{
	return forecast->window == USW_STREAM_WINDOW_MAX &&
	       usw_session_room(session) > USW_FAR_PAGES && usw_park_recall(target, address, place);
}

/**
 * Add a page to a run that is being gathered, if it is evicted; what cannot go on with the run
 * brings that in first. False: there is trouble, and no more is to be brought in.
 */
static bool gather(struct usw_fault_thread *thread, struct usw_target *target, struct run *run,
		   uint64_t address, const struct usw_forecast *forecast)
{
	struct usw_disk_place place;
	uint64_t now;
	usw_page_word *word = usw_answer_find_evicted(target, address, &now);
	bool follows = run->count && address == run->start + (uint64_t)run->count * USW_PAGE_BYTES;

	if ((!word || !follows) && !bring_in(thread, target, run))
		return false;
	if (!word || address == target->token_page)
		return true;
	int ret = usw_content_load(thread->session, usw_page_id(now),
				   thread->window + (uint64_t)run->count * USW_PAGE_BYTES,
				   &run->backend[run->count], &place);
	// From a disk it is asked for now, with the others; it comes in by itself when it is there.
	if (ret == -EREMOTE)
		return bring_in(thread, target, run) &&
		       !wakes_up(thread->session, target, forecast, address, &place) &&
		       usw_diskanswer_read_ahead(thread, target, address, usw_page_id(now), &place);
	if (ret)
		return false; // damaged: the fault that asks for it will say so
	if (!run->count)
		run->start = address;
	run->word[run->count] = word;
	run->now[run->count++] = now;
	return true;
}

void usw_prefetch_stream(struct usw_fault_thread *thread, struct usw_target *target,
			 const struct usw_fault *fault, const struct usw_forecast *forecast)
{
	uint64_t page = fault->page;
	uint64_t step = (uint64_t)forecast->stride * USW_PAGE_BYTES;
	int64_t room = usw_session_room(thread->session) / 4;
	uint32_t window = forecast->window;

	if (room < (int64_t)window)
		window = room > 0 ? (uint32_t)room : 0;
	bool down = forecast->stride < 0; // the lowest page first, so that they lie in a row
	uint64_t lowest = page + step * (down ? window : 1);
	uint64_t highest = page + step * (down ? 1 : window);
	struct run run = begin_runs(target, fault, lowest, highest + USW_PAGE_BYTES);
	for (uint32_t i = 0; i < window; i++)
		if (!gather(thread, target, &run, page + step * (down ? window - i : i + 1),
			    forecast))
			break;
	bring_in(thread, target, &run);
	if (!thread->disk)
		return;
	if (forecast->window == USW_STREAM_WINDOW_MAX && thread->disk->busy)
		usw_diskanswer_read_reserve(thread, target, page + step * (window + 1), step,
					    USW_RESERVE_WINDOWS * (window + 1));
	usw_diskfault_flush(thread->disk);
}

void usw_prefetch_cluster(struct usw_fault_thread *thread, struct usw_target *target,
			  const struct usw_fault *fault)
{
	uint64_t page = fault->page;
	const struct usw_forecast none = {0};
	struct usw_session *session = thread->session;
	struct usw_clusters *clusters = &target->clusters;
	int64_t limit = atomic_load_explicit(&session->limit_pages, memory_order_relaxed);
	uint64_t missing[USW_CLUSTER_PAGES];
	uint32_t count = 0;
	uint64_t now;
	bool is_trial;

	if (!usw_clusters_note(clusters, page / USW_PAGE_BYTES, (uint64_t)limit, &is_trial) ||
	    usw_session_room(session) / 4 < (int64_t)USW_CLUSTER_PAGES)
		return;
	uint64_t before = atomic_load(&thread->counters.prefetched_pages);
	uint64_t bytes = USW_CLUSTER_PAGES * USW_PAGE_BYTES;
	uint64_t start = page / bytes * bytes;
	for (uint64_t at = start; at < start + bytes; at += USW_PAGE_BYTES)
		if (at != page && usw_answer_find_evicted(target, at, &now) &&
		    !usw_clusters_is_left_out(clusters, at / USW_PAGE_BYTES))
			missing[count++] = at;
	uint32_t left_out = is_trial && count ? usw_clusters_choose(clusters, count) : count;
	if (left_out < count)
		usw_clusters_leave_out(clusters, missing[left_out] / USW_PAGE_BYTES);
	struct run run = begin_runs(target, fault, start, count ? start + bytes : start);
	for (uint32_t i = 0; i < count; i++)
		if (i != left_out && !gather(thread, target, &run, missing[i], &none))
			break;
	bring_in(thread, target, &run);
	uint64_t brought = atomic_load(&thread->counters.prefetched_pages) - before;
	usw_count(&thread->counters, prefetch_proven,
		  usw_clusters_wanted(clusters, (uint32_t)brought));
	if (thread->disk)
		usw_diskfault_flush(thread->disk);
}
