// SPDX-License-Identifier: MIT

/**
 * @file
 * Answering faults. See fault.h.
 *
 * The path of a fault, from top to bottom: page map, descriptor, content into this thread's buffer,
 * verify, UFFDIO_COPY, account. No lock, no allocation, no logging on it.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "content.h"
#include "control.h"
#include "diskfault.h"
#include "event.h"
#include "fault.h"
#include "follow.h"
#include "park.h"
#include "ring.h"
#include "uffd.h"

#define USW_MESSAGES_MAX 16
/* A target is listened to so often before others have their turn. */
#define USW_PUMP_ROUNDS 32
/* What a fault thread's buffers take: one page, zeros, a window. */
#define USW_BUFFERS_BYTES \
	((uint64_t)(1 + USW_HOLE_PAGES_MAX + USW_STREAM_WINDOW_MAX) * USW_PAGE_BYTES)
/* Zero pages that are let go at once when they are written one after the other. */
#define USW_WRITE_PAGES_MAX 16u
#define USW_EPOLL_EVENTS 16
/* With so much room the limit is far away: 64 MiB. */
#define USW_FAR_PAGES 16384
/* A waiting fault is looked at again after this long even if nobody kicks. */
#define USW_DEFERRED_POLL_MS 1

enum verdict {
	ANSWERED,
	DEFER,   /* try again soon */
	DROPPED, /* nobody waits for it any more */
	READING, /* its content is on a disk and was asked for */
};

struct fault {
	uint64_t page;
	uint64_t since_ns;
	uint32_t flags;
	uint32_t thread_id;
	bool is_again; /* it could not be answered before: nothing new is learned from it */
};

/* epoll data: a target with one of these in its low bits, or NULL for the kick. */
enum { SOURCE_UFFD = 0, SOURCE_PIDFD = 1, SOURCE_DISK = 2 };

// --- Answers ------------------------------------------------------------------------------------

/**
 * What to do when a copy of one page did not go in. The page is not in from us in any case.
 */
static enum verdict copy_failed(struct usw_target *target, uint64_t page, int error)
{
	switch (error) {
	case -EEXIST: // somebody was first; whoever waits only has to be told
		usw_uffd_wake(target->uffd, page, USW_PAGE_BYTES);
		return ANSWERED;
	case -ENOENT: // the mapping is gone or is not ours any more; let the thread find out
	case -EINVAL:
		usw_uffd_wake(target->uffd, page, USW_PAGE_BYTES);
		return DROPPED;
	case -ESRCH: // the address space is gone
		return DROPPED;
	case -EAGAIN: // an event is unread: it will be read before this fault is tried again
	case -ENOMEM: // the machine is out of memory for the moment
	default:
		return DEFER;
	}
}

/** Never zeros, never a guess: an access to this page ends in SIGBUS. */
static enum verdict poison(struct usw_fault_thread *thread, struct usw_target *target,
			   uint64_t page, usw_page_word *word, uint64_t now, const char *where,
			   const char *why)
{
	int ret = usw_uffd_poison(target->uffd, page, USW_PAGE_BYTES);

	if (ret == -EAGAIN)
		return DEFER;
	if (usw_page_state(now) == USW_PAGE_EVICTED) {
		usw_page_transition(word, now, usw_page_make(USW_PAGE_POISONED, 0, 0, 0));
		usw_vswap_put(&thread->session->vswap, usw_page_id(now));
		usw_count(&thread->counters, poisoned_pages, 1);
		usw_session_report(thread->session, USW_EVENT_POISONED, target->id, target->pid,
				   "page %#llx: its content in the %s was damaged (%s); "
				   "the program gets SIGBUS when it touches the page",
				   (unsigned long long)page, where, why);
	}
	if (ret == -EOPNOTSUPP || (ret && ret != -EEXIST))
		usw_target_kill(target, "a damaged page cannot be poisoned on this kernel");
	return ANSWERED;
}

/** How hot a page is that comes back after `distance` fault-ins (DESIGN: learned from faults). */
static uint32_t heat_of(const struct usw_session *session, uint32_t stamp)
{
	uint32_t clock = atomic_load_explicit(&session->fault_clock, memory_order_relaxed) >> 4;
	uint64_t distance = (uint64_t)((clock - stamp) & USW_STAMP_MASK) << 4;
	uint64_t resident = (uint64_t)usw_max(
		1, (uint64_t)atomic_load_explicit(&session->limit_pages, memory_order_relaxed));

	if (distance < resident / 16)
		return 7;
	if (distance < resident / 8)
		return 5;
	if (distance < resident / 4)
		return 3;
	if (distance < resident / 2)
		return 2;
	return distance <= resident ? 1 : 0;
}

static void count_source(struct usw_fault_thread *thread, enum usw_backend backend)
{
	switch (backend) {
	case USW_BACKEND_ZERO:
		usw_count(&thread->counters, faults_zero, 1);
		break;
	case USW_BACKEND_SAME:
		usw_count(&thread->counters, faults_same, 1);
		break;
	case USW_BACKEND_MEMORY:
		usw_count(&thread->counters, faults_standby, 1);
		break;
	case USW_BACKEND_OBJECT:
		usw_count(&thread->counters, faults_ram, 1);
		break;
	case USW_BACKEND_FREE:
		break;
	}
}

/** A page has come back because it was touched, from wherever it was. */
static void count_touch(struct usw_fault_thread *thread, struct usw_target *target, uint64_t now)
{
	usw_count(target, faults, 1);
	if (heat_of(thread->session, usw_page_stamp(now)) > 0)
		usw_count(target, refaults, 1);
}

static bool has_room(struct usw_fault_thread *thread, struct usw_target *target,
		     const struct fault *fault)
{
	struct usw_session *session = thread->session;

	if (usw_session_room(session) > 0 ||
	    atomic_load_explicit(&session->let_pass, memory_order_relaxed))
		return true;
	// Hands faults only when it takes over shared pages for the reclaim thread, which waits.
	return target->ring && fault->thread_id &&
	       fault->thread_id == __atomic_load_n(&target->ring->hands_pid, __ATOMIC_RELAXED);
}

/** Where a page's content goes, by what the page map knows of it; NULL if it is not evicted. */
static usw_page_word *find_evicted(const struct usw_target *target, uint64_t page, uint64_t *ret)
{
	usw_page_word *word = usw_pagemap_find(&target->pagemap, page);

	*ret = word ? atomic_load_explicit(word, memory_order_acquire) : 0;
	return usw_page_state(*ret) == USW_PAGE_EVICTED ? word : NULL;
}

/** Evicted pages in a row, their content side by side in the thread's window. */
struct run {
	uint64_t start;
	uint32_t count;
	usw_page_word *word[USW_STREAM_WINDOW_MAX];
	uint64_t now[USW_STREAM_WINDOW_MAX];
	enum usw_backend backend[USW_STREAM_WINDOW_MAX];
};

/** The page is there: its word says so. Heat is what the sweep will count down. */
static void settle(struct usw_fault_thread *thread, usw_page_word *word, uint64_t now,
		   enum usw_backend backend, bool on_disk, uint32_t heat)
{
	struct usw_session *session = thread->session;
	// A page in standby is compressed only when it grows old there: coming back it has no copy
	// worth keeping. A copy on a disk costs no RAM: that one always is.
	bool keep = backend != USW_BACKEND_MEMORY &&
		    (on_disk || atomic_load_explicit(&session->keep_copies, memory_order_relaxed));

	usw_page_transition(word, now,
			    usw_page_make(USW_PAGE_RESIDENT, heat,
					  keep ? usw_page_id(now) : USW_VSWAP_NONE, 0));
	if (!keep)
		usw_vswap_put(&session->vswap, usw_page_id(now));
	usw_count(&thread->counters, verified_pages, 1);
}

/** Bring a run in with one call. What does not go in stays evicted: nobody has asked for it yet. */
static bool bring_in(struct usw_fault_thread *thread, struct usw_target *target, struct run *run)
{
	uint64_t done = 0;
	uint32_t count = run->count;

	run->count = 0;
	if (!count)
		return true;
	usw_uffd_copy(target->uffd, run->start, thread->window, (uint64_t)count * USW_PAGE_BYTES,
		      &done);
	uint32_t brought = (uint32_t)(done / USW_PAGE_BYTES);
	// One sweep passes over it: it is there to be used soon.
	for (uint32_t i = 0; i < brought; i++)
		settle(thread, run->word[i], run->now[i], run->backend[i], false, 1);
	usw_session_charge(thread->session, brought);
	usw_count(&thread->counters, prefetched_pages, brought);
	return brought == count;
}

/**
 * Hand in what is known to be right; the page map names its ID. 0, or what the copy said: -EEXIST is
 * settled, too, and the others have changed nothing.
 */
static int hand_in(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page,
		   usw_page_word *word, uint64_t now, const void *content, enum usw_backend backend,
		   bool on_disk)
{
	struct usw_session *session = thread->session;
	uint64_t done;
	int ret = usw_uffd_copy(target->uffd, page, content, USW_PAGE_BYTES, &done);

	if (ret && ret != -EEXIST)
		return ret;

	atomic_fetch_add_explicit(&session->fault_clock, 1, memory_order_relaxed);
	if (ret) { // present already: what is there is newer than what we have
		usw_page_transition(word, now, usw_page_make(USW_PAGE_RESIDENT, 0, 0, 0));
		usw_vswap_put(&session->vswap, usw_page_id(now));
		return ret;
	}
	settle(thread, word, now, backend, on_disk, heat_of(session, usw_page_stamp(now)));
	usw_session_charge(session, 1);
	return 0;
}

// --- Content on a disk --------------------------------------------------------------------------

/** What a thread needs for disk faults, at its first one. */
static struct usw_disk_faults *disk_faults(struct usw_fault_thread *thread)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = SOURCE_DISK};

	if (thread->disk)
		return thread->disk;
	struct usw_disk_faults *disk = usw_diskfault_create(thread->session);
	if (disk && epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, usw_aio_fd(disk->aio), &event) < 0) {
		usw_diskfault_destroy(disk);
		return NULL;
	}
	return thread->disk = disk;
}

/** Ask for a page ahead of its fault. False: as many as may be are under way. */
static bool read_ahead(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page,
		       uint32_t id, const struct usw_disk_place *place)
{
	struct usw_disk_faults *disk = disk_faults(thread);
	struct usw_deferred ahead = {.address = page};
	struct usw_disk_read *read = disk ? usw_diskfault_find(disk, target, page) : NULL;

	if (read)
		usw_diskfault_call(disk, read);
	return read || (disk && usw_diskfault_begin(disk, thread->session, target, &ahead, true, id,
						    place));
}

/** Read the pages that a walk will ask for after those it is going to get now. */
static void read_reserve(struct usw_fault_thread *thread, struct usw_target *target, uint64_t start,
			 uint64_t step, uint32_t count)
{
	struct usw_disk_faults *disk = thread->disk;
	struct usw_deferred ahead = {.since_ns = usw_now_ns()};
	struct usw_disk_place place;
	uint64_t now;

	for (uint32_t i = 0; i < count; i++) {
		ahead.address = start + i * step;
		if (!find_evicted(target, ahead.address, &now) ||
		    !usw_content_is_on_disk(thread->session, usw_page_id(now), &place) ||
		    usw_diskfault_find(disk, target, ahead.address))
			continue;
		struct usw_disk_read *read = usw_diskfault_begin(
			disk, thread->session, target, &ahead, true, usw_page_id(now), &place);
		if (!read)
			return;
		read->is_reserve = true;
	}
}

/** Ask for the content, and go on with other faults until it is there. */
static enum verdict fault_in_from_disk(struct usw_fault_thread *thread, struct usw_target *target,
				       const struct fault *fault, uint32_t id,
				       const struct usw_disk_place *place)
{
	struct usw_disk_faults *disk = disk_faults(thread);
	struct usw_deferred waiting = {
		.address = fault->page,
		.since_ns = fault->since_ns,
		.flags = fault->flags,
		.thread_id = fault->thread_id,
	};

	if (!disk)
		return DEFER;
	struct usw_disk_read *read = usw_diskfault_find(disk, target, fault->page);
	if (read) {
		// On its way already: the copy wakes everybody who waits for the page.
		if (read->is_ahead) {
			usw_diskfault_call(disk, read);
			read->is_ahead = false;
			read->fault = waiting;
		}
		return READING;
	}
	if (!usw_diskfault_begin(disk, thread->session, target, &waiting, false, id, place))
		return DEFER;
	usw_diskfault_flush(disk); // with what was asked for ahead
	return READING;
}

/** Where damage is, for the user: "disk tier disk1". */
static void name_tier(struct usw_session *session, uint64_t where, char *text, size_t bytes)
{
	snprintf(text, bytes, "disk tier %s", session->tiers.at[usw_where_tier(where)].name);
}

// --- Content in memory ---------------------------------------------------------------------------

/**
 * A long stream over pages on a disk with the limit far away: a program wakes up. Then whole segments
 * are read ahead of it. Near the limit they are not: their pages would have to leave again, and a
 * page that is read alone keeps its copy on the disk.
 */
static bool wakes_up(const struct usw_session *session, const struct usw_target *target,
		     const struct usw_forecast *forecast, uint64_t address,
		     const struct usw_disk_place *place)
{
	return forecast->window == USW_STREAM_WINDOW_MAX &&
	       usw_session_room(session) > USW_FAR_PAGES && usw_park_recall(target, address, place);
}

/**
 * Add a page to a run that is being gathered, if it is evicted; what cannot go on with the run brings
 * that in first. False: there is trouble, and no more is to be brought in.
 */
static bool gather(struct usw_fault_thread *thread, struct usw_target *target, struct run *run,
		   uint64_t address, const struct usw_forecast *forecast)
{
	struct usw_disk_place place;
	uint64_t now;
	usw_page_word *word = find_evicted(target, address, &now);
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
		       read_ahead(thread, target, address, usw_page_id(now), &place);
	if (ret)
		return false; // damaged: the fault that asks for it will say so
	if (!run->count)
		run->start = address;
	run->word[run->count] = word;
	run->now[run->count++] = now;
	return true;
}

/**
 * Bring in what the stream of this fault will ask for, in address order and in runs, whatever
 * backends hold it. Never at the expense of the last room, and given up at the first trouble: the
 * pages that are missing will be asked for.
 */
static void prefetch(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page,
		     const struct usw_forecast *forecast)
{
	uint64_t step = (uint64_t)forecast->stride * USW_PAGE_BYTES;
	int64_t room = usw_session_room(thread->session) / 4;
	uint32_t window = forecast->window;
	struct run run = {0};

	if (room < (int64_t)window)
		window = room > 0 ? (uint32_t)room : 0;
	bool down = forecast->stride < 0;
	for (uint32_t i = 0; i < window; i++)
		if (!gather(thread, target, &run, page + step * (down ? window - i : i + 1),
			    forecast))
			break;
	bring_in(thread, target, &run);
	if (!thread->disk)
		return;
	// A walk over a disk: of a window that went down, the lowest page is the last.
	if (forecast->window == USW_STREAM_WINDOW_MAX && thread->disk->busy) {
		uint64_t start = page + step * (window + 1);

		read_reserve(thread, target, down ? start + step * window : start,
			     down ? -step : step, window + 1);
	}
	usw_diskfault_flush(thread->disk);
}

/** Bring in the neighbours of a page if faults are dense there, but for one that is left out. */
static void prefetch_cluster(struct usw_fault_thread *thread, struct usw_target *target,
			     uint64_t page)
{
	const struct usw_forecast none = {0};
	struct usw_session *session = thread->session;
	struct usw_clusters *clusters = &target->clusters;
	int64_t limit = atomic_load_explicit(&session->limit_pages, memory_order_relaxed);
	uint64_t missing[USW_CLUSTER_PAGES];
	struct run run = {0};
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
		if (at != page && find_evicted(target, at, &now) &&
		    !usw_clusters_is_left_out(clusters, at / USW_PAGE_BYTES))
			missing[count++] = at;
	uint32_t left_out = is_trial && count ? usw_clusters_choose(clusters, count) : count;
	if (left_out < count)
		usw_clusters_leave_out(clusters, missing[left_out] / USW_PAGE_BYTES);
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

/** The content of an evicted page comes back. */
static enum verdict fault_in(struct usw_fault_thread *thread, struct usw_target *target,
			     const struct fault *fault, usw_page_word *word, uint64_t now)
{
	struct usw_session *session = thread->session;
	struct usw_disk_place place;
	uint32_t id = usw_page_id(now);
	enum usw_backend backend;

	if (!has_room(thread, target, fault))
		return DEFER;
	struct usw_forecast forecast =
		usw_streams_note(&target->streams, fault->thread_id, fault->page / USW_PAGE_BYTES);
	usw_count(&thread->counters, prefetch_proven, forecast.proven);
	if (forecast.window)
		prefetch(thread, target, fault->page, &forecast);
	else if (!fault->is_again)
		prefetch_cluster(thread, target, fault->page);
	int ret = usw_content_load(session, id, thread->page, &backend, &place);
	if (ret == -EREMOTE)
		return fault_in_from_disk(thread, target, fault, id, &place);
	if (ret)
		return poison(thread, target, fault->page, word, now,
			      backend == USW_BACKEND_MEMORY ? "standby" : "ram tier",
			      "hash mismatch");
	ret = hand_in(thread, target, fault->page, word, now, thread->page, backend, false);
	if (ret)
		return copy_failed(target, fault->page, ret);
	count_source(thread, backend);
	count_touch(thread, target, now);
	return ANSWERED;
}

/**
 * Ask a disk for a page that is restored: its whole segment, or the page alone, which then comes in
 * by itself. -EAGAIN: too many are under way.
 */
static int ask_for(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page,
		   uint32_t id, const struct usw_disk_place *place)
{
	if (usw_park_recall(target, page, place))
		return -EINPROGRESS;
	bool asked = read_ahead(thread, target, page, id, place);

	if (thread->disk)
		usw_diskfault_flush(thread->disk);
	if (asked)
		return 1;
	return thread->disk && thread->disk->busy ? -EAGAIN : 0;
}

int usw_fault_bring_in(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page)
{
	struct usw_disk_place place;
	enum usw_backend backend;
	uint64_t now;
	uint64_t done;
	usw_page_word *word = find_evicted(target, page, &now);

	if (!word)
		return 0;
	int ret =
		usw_content_load(thread->session, usw_page_id(now), thread->page, &backend, &place);
	if (ret == -EREMOTE)
		return ask_for(thread, target, page, usw_page_id(now), &place);
	if (ret)
		return 0; // damaged: the fault that asks for it will say so
	ret = usw_uffd_copy(target->uffd, page, thread->page, USW_PAGE_BYTES, &done);
	if (ret)
		return ret == -EAGAIN || ret == -ENOMEM ? -EAGAIN : 0;
	settle(thread, word, now, backend, false, 1);
	usw_session_charge(thread->session, 1);
	return 1;
}

/** How many pages from `page` on nothing is known of; at least 1, which the caller knows already. */
static uint32_t hole_length(const struct usw_target *target, uint64_t page, uint32_t limit)
{
	uint32_t length = 1;

	while (length < limit) {
		usw_page_word *word = usw_pagemap_find(&target->pagemap,
						       page + (uint64_t)length * USW_PAGE_BYTES);

		if (word && atomic_load(word) != 0)
			break;
		length++;
	}
	return length;
}

/** Zeros for a run of pages that never held anything. Caller is in the filling section. */
static enum verdict fill(struct usw_fault_thread *thread, struct usw_target *target, uint64_t page,
			 uint32_t length)
{
	uint64_t done;
	int ret = usw_uffd_copy(target->uffd, page, thread->zeros,
				(uint64_t)length * USW_PAGE_BYTES, &done);

	// The run may leave its mapping, which is refused whole: then the one page will do.
	if (ret && !done && length > 1)
		ret = usw_uffd_copy(target->uffd, page, thread->zeros, USW_PAGE_BYTES, &done);
	if (!done)
		return copy_failed(target, page, ret);
	usw_session_charge(thread->session, (int64_t)(done / USW_PAGE_BYTES));
	usw_count(&thread->counters, faults_hole, 1);
	usw_leaving_returned(&target->leaving, page, page + done);
	target->hole_next = page + done;
	return ANSWERED;
}

/**
 * A hole: memory nobody has touched yet, or has given back. Zeros are copied, not mapped: a mapped
 * zero page would become a real one at its first write, without a message and past the limit.
 */
static enum verdict fill_hole(struct usw_fault_thread *thread, struct usw_target *target,
			      const struct fault *fault)
{
	int64_t room = usw_session_room(thread->session);

	if (!has_room(thread, target, fault))
		return DEFER;
	if (fault->page == target->hole_next)
		target->hole_window =
			(uint32_t)usw_min(target->hole_window * 2 + 1, USW_HOLE_PAGES_MAX);
	else
		target->hole_window = 1;

	// From here until `filling` is even again no page that looks like a hole is taken out: see
	// evict_batch() in evict.c. First the flag, then the words.
	atomic_fetch_add(&target->filling, 1);
	usw_page_word *word = usw_pagemap_find(&target->pagemap, fault->page);
	enum usw_page_state state = word ? usw_page_state(atomic_load(word)) : USW_PAGE_NONE;
	enum verdict verdict = DEFER;
	if (state == USW_PAGE_NONE || state == USW_PAGE_RESIDENT) {
		uint32_t limit =
			(uint32_t)usw_min(target->hole_window, room > 0 ? (uint64_t)room : 1);

		verdict =
			fill(thread, target, fault->page, hole_length(target, fault->page, limit));
	}
	atomic_fetch_add(&target->filling, 1);
	return verdict;
}

/**
 * The first write to a zero page that was mapped before the range was registered: it becomes a real
 * page. Few at once even in a stream, since what is let go here and not written soon is forgotten
 * by the next measurement, and would grow unseen when it is.
 */
static enum verdict let_write(struct usw_fault_thread *thread, struct usw_target *target,
			      const struct fault *fault)
{
	int64_t room = usw_session_room(thread->session);

	if (!has_room(thread, target, fault))
		return DEFER;
	target->write_window =
		fault->page == target->write_next
			? (uint32_t)usw_min(target->write_window * 2 + 1, USW_WRITE_PAGES_MAX)
			: 1;
	uint32_t length = (uint32_t)usw_min(target->write_window, room > 0 ? (uint64_t)room : 1);
	int ret = usw_uffd_unprotect(target->uffd, fault->page, (uint64_t)length * USW_PAGE_BYTES);

	if (ret == -ENOENT && length > 1) { // the run leaves its mapping
		length = 1;
		ret = usw_uffd_unprotect(target->uffd, fault->page, USW_PAGE_BYTES);
	}
	if (ret)
		return copy_failed(target, fault->page, ret);
	usw_session_charge(thread->session, length);
	usw_count(&thread->counters, faults_hole, 1);
	target->write_next = fault->page + (uint64_t)length * USW_PAGE_BYTES;
	return ANSWERED;
}

/** A forked child's shim asks who it is (see wire.h). */
static enum verdict answer_token(struct usw_fault_thread *thread, struct usw_target *target,
				 uint64_t page)
{
	uint64_t done;

	memset(thread->page, 0, USW_PAGE_BYTES);
	memcpy(thread->page, &target->token, sizeof(target->token));
	int ret = usw_uffd_copy(target->uffd, page, thread->page, USW_PAGE_BYTES, &done);
	return ret ? copy_failed(target, page, ret) : ANSWERED;
}

/** Answer one fault, whatever the page is. */
static enum verdict answer(struct usw_fault_thread *thread, struct usw_target *target,
			   const struct fault *fault)
{
	if (usw_unlikely(fault->page == target->token_page))
		return answer_token(thread, target, fault->page);
	if (usw_unlikely(fault->flags & UFFD_PAGEFAULT_FLAG_WP))
		return let_write(thread, target, fault);

	usw_page_word *word = usw_pagemap_find(&target->pagemap, fault->page);
	uint64_t now = word ? atomic_load_explicit(word, memory_order_acquire) : 0;
	switch (usw_page_state(now)) {
	case USW_PAGE_EVICTED:
		return fault_in(thread, target, fault, word, now);
	case USW_PAGE_NONE:
	case USW_PAGE_RESIDENT: // an old message, or memory that went without an event: a hole
		return fill_hole(thread, target, fault);
	case USW_PAGE_EVICTING:
		return DEFER;
	case USW_PAGE_POISONED:
		return poison(thread, target, fault->page, word, now, "", "");
	}
	return DROPPED;
}

// --- Waiting faults -----------------------------------------------------------------------------

static void defer(struct usw_fault_thread *thread, struct usw_target *target,
		  const struct fault *fault)
{
	uint32_t waiting = atomic_load_explicit(&target->deferred_waiting, memory_order_relaxed);

	usw_count(&thread->counters, faults_deferred, 1);
	if (waiting == USW_DEFERRED_MAX) {
		// Make it fault again: the kernel's queue has room for all of them.
		usw_count(&thread->counters, faults_overflow, 1);
		usw_uffd_wake(target->uffd, fault->page, USW_PAGE_BYTES);
		return;
	}
	target->deferred[waiting] = (struct usw_deferred){
		.address = fault->page,
		.since_ns = fault->since_ns,
		.flags = fault->flags,
		.thread_id = fault->thread_id,
	};
	atomic_store(&target->deferred_waiting, waiting + 1);
	atomic_fetch_add(&thread->deferred_count, 1);
	if (!target->on_deferred_list) {
		target->on_deferred_list = true;
		target->next_deferred = thread->deferred_list;
		thread->deferred_list = target;
	}
}

static void finish(struct usw_fault_thread *thread, const struct fault *fault, enum verdict verdict)
{
	if (verdict != ANSWERED)
		return;
	usw_count(&thread->counters, faults_total, 1);
	usw_histogram_record(&thread->latency, usw_now_ns() - fault->since_ns);
}

/** Try a target's waiting faults again. */
static void retry_target(struct usw_fault_thread *thread, struct usw_target *target)
{
	uint32_t waiting = atomic_load_explicit(&target->deferred_waiting, memory_order_relaxed);
	uint32_t left = 0;

	for (uint32_t i = 0; i < waiting; i++) {
		struct fault fault = {
			.page = target->deferred[i].address,
			.since_ns = target->deferred[i].since_ns,
			.flags = target->deferred[i].flags,
			.thread_id = target->deferred[i].thread_id,
			.is_again = true,
		};
		enum verdict verdict = answer(thread, target, &fault);

		if (verdict == DEFER)
			target->deferred[left++] = target->deferred[i];
		else
			finish(thread, &fault, verdict);
	}
	atomic_store(&target->deferred_waiting, left);
	atomic_fetch_sub(&thread->deferred_count, waiting - left);
}

static void pump(struct usw_fault_thread *thread, struct usw_target *target);

/** A page came in from a disk: because somebody waited for it, or ahead of that. */
static void count_read(struct usw_fault_thread *thread, const struct usw_disk_read *read,
		       uint64_t now)
{
	if (read->is_ahead) {
		usw_count(&thread->counters, prefetched_pages, 1);
		return;
	}
	usw_count(&thread->counters, faults_disk, 1);
	count_touch(thread, read->target, now);
}

/** The page map's word for what was read, if it still names that; else NULL. */
static usw_page_word *find_named(const struct usw_fault_thread *thread,
				 const struct usw_disk_read *read, uint64_t *ret_now)
{
	usw_page_word *word = find_evicted(read->target, read->fault.address, ret_now);

	return word && usw_page_id(*ret_now) == read->id &&
			       usw_vswap_hash(&thread->session->vswap, read->id) == read->hash
		       ? word
		       : NULL;
}

/** A page that was read is settled, in whatever way: nobody waits for it here any more. */
static void end_read(struct usw_fault_thread *thread, struct usw_disk_read *read,
		     enum verdict verdict)
{
	const struct fault fault = {.since_ns = read->fault.since_ns};
	struct usw_segment *h =
		usw_segments_header(&thread->session->segments, read->place.segment);

	if (!read->is_ahead)
		finish(thread, &fault, verdict);
	atomic_fetch_add_explicit(&h->refaults, 1, memory_order_relaxed);
	usw_diskfault_done(thread->disk, read);
}

/** A page that was read has been looked at: is it still what the page map names? */
static enum verdict settle_read(struct usw_fault_thread *thread, struct usw_disk_read *read)
{
	struct usw_session *session = thread->session;
	struct usw_target *target = read->target;
	struct fault fault = {
		.page = read->fault.address,
		.since_ns = read->fault.since_ns,
		.flags = read->fault.flags,
		.thread_id = read->fault.thread_id,
		.is_again = true,
	};
	const char *why = NULL;
	int opened = read->stage == USW_READ_READY
			     ? 0
			     : usw_diskfault_open(thread->disk, session, read, &why);
	uint64_t now;
	usw_page_word *word = find_named(thread, read, &now);
	enum verdict verdict;

	if (!word || opened == -EAGAIN) {
		bool is_ahead = read->is_ahead;

		usw_diskfault_done(thread->disk, read);
		if (is_ahead)
			return DROPPED;
		verdict = answer(thread, target, &fault);
		if (verdict == DEFER)
			defer(thread, target, &fault);
		else
			finish(thread, &fault, verdict);
		return verdict;
	}
	if (opened) {
		char where[64];

		name_tier(session, read->place.object.where, where, sizeof(where));
		verdict = read->is_ahead
				  ? DROPPED
				  : poison(thread, target, fault.page, word, now, where, why);
	} else if (!has_room(thread, target, &fault)) {
		verdict = read->is_ahead ? DROPPED : DEFER;
	} else {
		int ret = hand_in(thread, target, fault.page, word, now, usw_diskfault_page(read),
				  USW_BACKEND_OBJECT, true);

		verdict = ret ? copy_failed(target, fault.page, ret) : ANSWERED;
		if (!ret)
			count_read(thread, read, now);
	}
	if (verdict == DEFER)
		return DEFER; // it stays ready, or is opened again
	end_read(thread, read, verdict);
	return verdict;
}

/** As find_named(), of a read that is opened now if it was not; NULL also if it cannot be. */
static usw_page_word *find_opened(struct usw_fault_thread *thread, struct usw_disk_read *read,
				  uint64_t *ret_now)
{
	const char *why;

	if (read->stage == USW_READ_DONE)
		usw_diskfault_open(thread->disk, thread->session, read, &why);
	return read->stage == USW_READ_READY ? find_named(thread, read, ret_now) : NULL;
}

/**
 * Hand in with one call what was read of a walk, pages in a row: one by one, the program would wake for
 * the first, run into the second, and sleep again, each time. Returns how many are settled; who is
 * left is settled alone.
 */
static uint32_t settle_run(struct usw_fault_thread *thread, uint32_t from)
{
	struct usw_session *session = thread->session;
	struct usw_disk_read *first = &thread->disk->at[from];
	usw_page_word *word[USW_STREAM_WINDOW_MAX + 1];
	uint64_t now[USW_STREAM_WINDOW_MAX + 1];
	int64_t room = usw_session_room(session);
	uint32_t most = (uint32_t)usw_min(USW_STREAM_WINDOW_MAX + 1, USW_DISK_READS_MAX - from);
	uint32_t count = 0;
	uint64_t done = 0;

	while (count < most && (int64_t)count < room) {
		struct usw_disk_read *read = &first[count];

		if (!usw_diskfault_is_there(read) || read->target != first->target ||
		    read->fault.address != first->fault.address + count * USW_PAGE_BYTES)
			break;
		word[count] = find_opened(thread, read, &now[count]);
		if (!word[count])
			break;
		count++;
	}
	if (count < 2)
		return 0;
	usw_uffd_copy(first->target->uffd, first->fault.address, usw_diskfault_page(first),
		      count * USW_PAGE_BYTES, &done);
	uint32_t brought = (uint32_t)(done / USW_PAGE_BYTES);
	atomic_fetch_add_explicit(&session->fault_clock, brought, memory_order_relaxed);
	usw_session_charge(session, brought);
	for (uint32_t i = 0; i < brought; i++) {
		settle(thread, word[i], now[i], USW_BACKEND_OBJECT, true,
		       heat_of(session, usw_page_stamp(now[i])));
		count_read(thread, &first[i], now[i]);
		end_read(thread, &first[i], ANSWERED);
	}
	return brought;
}

/** Look at all that was read. Returns whether something must be looked at again soon. */
static bool settle_reads(struct usw_fault_thread *thread)
{
	struct usw_disk_faults *disk = thread->disk;
	bool waiting = false;

	if (!disk || !disk->busy)
		return false;
	disk->is_ripe = false;
	usw_diskfault_collect(disk);
	for (uint32_t i = 0; i < USW_DISK_READS_MAX; i++) {
		struct usw_disk_read *read = &disk->at[i];

		if (!usw_diskfault_is_there(read))
			continue;
		if (!read->target) {
			usw_diskfault_done(disk, read);
			continue;
		}
		uint32_t settled = settle_run(thread, i);
		if (settled) {
			i += settled - 1;
			continue;
		}
		// What stands in the way of a page may be an event that nobody has read.
		if (read->stage == USW_READ_READY)
			pump(thread, read->target);
		if (read->stage != USW_READ_IDLE && settle_read(thread, read) == DEFER) {
			usw_reclaim_kick(thread->session);
			waiting = true;
		}
	}
	return waiting;
}

/** Try all waiting faults again: first read what their targets have to say. */
static void retry_deferred(struct usw_fault_thread *thread)
{
	struct usw_target **link = &thread->deferred_list;

	while (*link) {
		struct usw_target *target = *link;

		pump(thread, target);
		retry_target(thread, target);
		if (atomic_load_explicit(&target->deferred_waiting, memory_order_relaxed) == 0) {
			target->on_deferred_list = false;
			*link = target->next_deferred;
		} else {
			link = &target->next_deferred;
		}
	}
}

// --- Messages -----------------------------------------------------------------------------------

/** Read messages inside the gate; events among them are announced before it opens again. */
static int read_messages(struct usw_target *target, struct uffd_msg *messages, bool *ret_events)
{
	if (!usw_gate_enter(target))
		return 0;

	// The kernel lets pages and registrations move again while we are in read().
	atomic_fetch_add(&target->reading, 1);
	ssize_t got = read(target->uffd, messages, USW_MESSAGES_MAX * sizeof(*messages));
	int count = got > 0 ? (int)((size_t)got / sizeof(*messages)) : 0;
	bool reshaped = false;
	*ret_events = false;
	for (int i = 0; i < count; i++) {
		*ret_events |= messages[i].event != UFFD_EVENT_PAGEFAULT;
		reshaped |= messages[i].event == UFFD_EVENT_REMAP ||
			    messages[i].event == UFFD_EVENT_FORK;
	}
	if (*ret_events) {
		// In this order: see usw_target_register().
		atomic_store(&target->events_pending, true);
		if (reshaped)
			atomic_fetch_add(&target->generation, 1);
		uint32_t epoch = atomic_fetch_add(&target->epoch, 1) + 1;
		if (target->ring)
			__atomic_store_n(&target->ring->epoch, epoch, __ATOMIC_SEQ_CST);
	}
	atomic_fetch_add(&target->reading, 1);
	usw_gate_leave(target);
	return count;
}

/** Read and settle what one target has to say, once. True: a fault was answered. */
static bool pump_once(struct usw_fault_thread *thread, struct usw_target *target)
{
	struct uffd_msg messages[USW_MESSAGES_MAX];
	bool events = false;
	bool answered = false;
	int count = read_messages(target, messages, &events);

	if (count == 0)
		return false;
	uint64_t now_ns = usw_now_ns();
	if (events)
		usw_event_apply(target, messages, count);
	for (int i = 0; i < count; i++) {
		if (messages[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		struct fault fault = {
			.page = usw_page_floor(messages[i].arg.pagefault.address),
			.since_ns = now_ns,
			.flags = (uint32_t)messages[i].arg.pagefault.flags,
			.thread_id = messages[i].arg.pagefault.feat.ptid,
		};
		enum verdict verdict = answer(thread, target, &fault);

		if (verdict == DEFER)
			defer(thread, target, &fault);
		else
			finish(thread, &fault, verdict);
		answered |= verdict == ANSWERED;
		usw_follow(thread, target, fault.thread_id, now_ns);
	}
	usw_watch_kick(thread->session);
	if (atomic_load_explicit(&target->deferred_waiting, memory_order_relaxed) ||
	    usw_session_room(thread->session) <
		    atomic_load_explicit(&thread->session->low_pages, memory_order_relaxed))
		usw_reclaim_kick(thread->session);
	return answered;
}

/**
 * Read and settle what one target has to say. The thread whose fault was answered here has run on
 * this processor since, in our place, and is most often waiting again: look before asking epoll.
 */
static void pump(struct usw_fault_thread *thread, struct usw_target *target)
{
	for (int i = 0; i < USW_PUMP_ROUNDS && pump_once(thread, target); i++)
		if (thread->deferred_list || (thread->disk && thread->disk->busy))
			return;
}

// --- Beginning and end of a target --------------------------------------------------------------

int usw_fault_serve(struct usw_fault_thread *thread, struct usw_target *target)
{
	struct epoll_event event = {
		.events = EPOLLIN,
		.data.u64 = (uintptr_t)target | SOURCE_UFFD,
	};

	target->thread = thread;
	if (epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, target->uffd, &event) < 0)
		return -errno;
	return target->pidfd >= 0 ? usw_fault_watch_exit(target) : 0;
}

int usw_fault_watch_exit(struct usw_target *target)
{
	struct epoll_event event = {
		.events = EPOLLIN,
		.data.u64 = (uintptr_t)target | SOURCE_PIDFD,
	};

	return epoll_ctl(target->thread->epoll_fd, EPOLL_CTL_ADD, target->pidfd, &event) < 0
		       ? -errno
		       : 0;
}

/** Let go of a target whose process is gone or has left this address space. */
static void retire(struct usw_fault_thread *thread, struct usw_target *target)
{
	if (atomic_load(&target->state) != USW_TARGET_LIVE)
		return;
	if (target->on_deferred_list) {
		struct usw_target **link = &thread->deferred_list;

		while (*link != target)
			link = &(*link)->next_deferred;
		*link = target->next_deferred;
		target->on_deferred_list = false;
		atomic_fetch_sub(&thread->deferred_count, atomic_load(&target->deferred_waiting));
		atomic_store(&target->deferred_waiting, 0);
	}

	if (thread->disk)
		usw_diskfault_forget(thread->disk, target);

	// The lock keeps a late handshake from adding a pidfd behind our back. The descriptors must
	// leave the epoll set by name: others hold duplicates, so closing ours would not do it.
	pthread_mutex_lock(&target->map_lock);
	epoll_ctl(thread->epoll_fd, EPOLL_CTL_DEL, target->uffd, NULL);
	if (target->pidfd >= 0)
		epoll_ctl(thread->epoll_fd, EPOLL_CTL_DEL, target->pidfd, NULL);
	usw_ring_quit(target);
	atomic_store(&target->state, USW_TARGET_RETIRED);
	pthread_mutex_unlock(&target->map_lock); // the reclaim thread may free it from here on
	usw_reclaim_kick(thread->session);
}

/** A target of this thread that somebody else wants retired. Only this thread can retire it. */
static struct usw_target *find_retire_asked(struct usw_fault_thread *thread)
{
	struct usw_session *session = thread->session;
	struct usw_target *target;

	pthread_mutex_lock(&session->targets_lock);
	for (target = session->targets; target; target = target->next)
		if (target->thread == thread && atomic_load(&target->retire_asked) &&
		    atomic_load(&target->state) == USW_TARGET_LIVE)
			break;
	pthread_mutex_unlock(&session->targets_lock);
	return target;
}

static void retire_asked(struct usw_fault_thread *thread)
{
	struct usw_target *target;

	if (!atomic_exchange(&thread->retire_asked, false))
		return;
	while ((target = find_retire_asked(thread)))
		retire(thread, target);
}

// --- The thread ---------------------------------------------------------------------------------

int usw_fault_thread_init(struct usw_fault_thread *thread, struct usw_session *session)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};

	*thread = (struct usw_fault_thread){
		.session = session, .epoll_fd = -1, .kick_fd = -1, .processor = -1};
	void *buffers = mmap(NULL, USW_BUFFERS_BYTES, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (buffers == MAP_FAILED)
		return -errno;
	thread->page = buffers;
	thread->zeros = thread->page + USW_PAGE_BYTES;
	thread->window = thread->zeros + USW_HOLE_PAGES_MAX * USW_PAGE_BYTES;
	thread->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	thread->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (thread->epoll_fd < 0 || thread->kick_fd < 0 ||
	    epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, thread->kick_fd, &event) < 0)
		return -errno;
	return 0;
}

void usw_fault_thread_deinit(struct usw_fault_thread *thread)
{
	usw_diskfault_destroy(thread->disk);
	thread->disk = NULL;
	if (thread->page)
		munmap(thread->page, USW_BUFFERS_BYTES);
	usw_cleanup_close(&thread->epoll_fd);
	usw_cleanup_close(&thread->kick_fd);
	thread->page = NULL;
	thread->epoll_fd = thread->kick_fd = -1;
}

void usw_fault_kick(struct usw_session *session)
{
	uint64_t one = 1;

	for (uint32_t i = 0; i < session->thread_count; i++) {
		if (atomic_load(&session->threads[i].deferred_count) == 0)
			continue;
		if (write(session->threads[i].kick_fd, &one, sizeof(one)) < 0)
			continue; // EAGAIN: full of kicks already
	}
}

/** Wait for anything at all, then settle it. */
static void wait_and_settle(struct usw_fault_thread *thread, int timeout_ms)
{
	struct epoll_event events[USW_EPOLL_EVENTS];
	int count = epoll_wait(thread->epoll_fd, events, USW_EPOLL_EVENTS, timeout_ms);
	bool kicked = false;

	for (int i = 0; i < count; i++) {
		struct usw_target *target =
			(struct usw_target *)(uintptr_t)(events[i].data.u64 & ~(uint64_t)7);
		uint64_t kicks;

		if (events[i].data.u64 == SOURCE_DISK) {
			continue; // settle_reads() looks at all of them
		} else if (!target) {
			kicked = read(thread->kick_fd, &kicks, sizeof(kicks)) > 0;
		} else if ((events[i].data.u64 & 7) == SOURCE_UFFD) {
			pump(thread, target);
		}
	}
	// Ends last: a target that is retired may have been named above, and may be freed at once.
	for (int i = 0; i < count; i++)
		if ((events[i].data.u64 & 7) == SOURCE_PIDFD)
			retire(thread,
			       (struct usw_target *)(uintptr_t)(events[i].data.u64 & ~(uint64_t)7));
	if (kicked)
		retire_asked(thread);
}

void *usw_fault_main(void *argument)
{
	struct usw_fault_thread *thread = argument;

	bool waiting = false;

	usw_session_hurry(0);
	while (!atomic_load_explicit(&thread->session->stopping, memory_order_relaxed)) {
		int timeout_ms = usw_control_restore(thread);

		if (thread->disk && thread->disk->is_ripe)
			timeout_ms = 0;
		else if (timeout_ms < 0 && (thread->deferred_list || waiting))
			timeout_ms = USW_DEFERRED_POLL_MS;
		wait_and_settle(thread, timeout_ms);
		waiting = settle_reads(thread);
		if (thread->deferred_list)
			retry_deferred(thread);
	}
	return NULL;
}
