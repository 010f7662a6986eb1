// SPDX-License-Identifier: MIT

/**
 * @file
 * Pages that come in from disks. See diskanswer.h.
 */

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>

#include "answer.h"
#include "diskanswer.h"
#include "fault.h"
#include "guard.h"
#include "session.h"
#include "uffd.h"

/*
 * Reads, or runs of them, that are settled before messages are read again, where many are under
 * way. What those who were woken ask for goes to the disk with one call, which is most of a disk
 * fault's cost, and the disk works while the others are woken.
 */
#define USW_SETTLE_MAX 4
/* Fewer reads than this are not enough to keep a disk at work: each is followed by the next at once. */
#define USW_SETTLE_DEPTH 8
/* Reads that are left to faults that wait. */
#define USW_RESERVE_READS_MAX (USW_DISK_READS_MAX - 64u)

// --- Asking -------------------------------------------------------------------------------------

/** What a thread needs for disk faults, at its first one. */
static struct usw_disk_faults *disk_faults(struct usw_fault_thread *thread)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = USW_SOURCE_DISK};

	if (thread->disk)
		return thread->disk;
	struct usw_disk_faults *disk = usw_diskfault_create(thread->session);
	if (disk && epoll_ctl(thread->epoll_fd, EPOLL_CTL_ADD, usw_aio_fd(disk->aio), &event) < 0) {
		usw_diskfault_destroy(disk);
		disk = NULL;
	}
	if (!disk && !atomic_exchange(&thread->session->disk_waits_told, true))
		usw_session_report(thread->session, USW_EVENT_WARNING, 0, 0,
				   "a program waits for a page on a disk, because the agent lacks "
				   "memory or open files to read it with (`ulimit -Hn`)");
	return thread->disk = disk;
}

bool usw_diskanswer_read_ahead(struct usw_fault_thread *thread, struct usw_target *target,
			       uint64_t page, uint32_t id, const struct usw_disk_place *place)
{
	struct usw_disk_faults *disk = disk_faults(thread);
	struct usw_fault ahead = {.page = page};
	struct usw_disk_read *read = disk ? usw_diskfault_find(disk, target, page) : NULL;

	if (read)
		usw_diskfault_call(disk, read);
	return read || (disk && usw_diskfault_begin(disk, thread->session, target, &ahead, true, id,
						    place));
}

/**
 * Read one page of a walk into reserve, if it is on a disk and not on its way already. False: as
 * many as may be are under way.
 */
static bool reserve(struct usw_fault_thread *thread, struct usw_target *target,
		    const struct usw_fault *ahead)
{
	struct usw_disk_faults *disk = thread->disk;
	struct usw_disk_place place;
	uint64_t now;

	if (!usw_answer_find_evicted(target, ahead->page, &now) ||
	    !usw_content_is_on_disk(thread->session, usw_page_id(now), &place) ||
	    usw_diskfault_find(disk, target, ahead->page))
		return true;
	struct usw_disk_read *read = usw_diskfault_begin(disk, thread->session, target, ahead, true,
							 usw_page_id(now), &place);
	if (read)
		read->is_reserve = true;
	return read;
}

void usw_diskanswer_read_reserve(struct usw_fault_thread *thread, struct usw_target *target,
				 uint64_t page, uint64_t step, uint32_t count)
{
	struct usw_fault ahead = {.since_ns = usw_now_ns()};
	bool down = (int64_t)step < 0;
	uint32_t asked = count;

	// The first of them were asked for with the window before.
	while (asked && !usw_diskfault_find(thread->disk, target, page + step * (asked - 1)))
		asked--;
	// The nearest, and upwards, whichever way the walk goes: so they lie side by side.
	uint32_t free = USW_RESERVE_READS_MAX -
			(uint32_t)usw_min(thread->disk->busy, USW_RESERVE_READS_MAX);
	uint32_t end = (uint32_t)usw_min(count, asked + free);
	for (uint32_t i = asked; i < end; i++) {
		ahead.page = page + step * (down ? end - 1 - (i - asked) : i);
		if (!reserve(thread, target, &ahead))
			return;
	}
}

bool usw_diskanswer_is_coming(const struct usw_fault_thread *thread,
			      const struct usw_target *target, uint64_t page)
{
	const struct usw_disk_read *read = thread->disk && thread->disk->busy
						   ? usw_diskfault_find(thread->disk, target, page)
						   : NULL;

	return read && !read->is_reserve;
}

enum usw_verdict usw_diskanswer_begin(struct usw_fault_thread *thread, struct usw_target *target,
				      const struct usw_fault *fault, uint32_t id,
				      const struct usw_disk_place *place)
{
	struct usw_disk_faults *disk = disk_faults(thread);

	if (!disk)
		return USW_DEFER;
	struct usw_tier *tier = &thread->session->tiers.at[usw_where_tier(place->object.where)];
	struct usw_disk_read *read = usw_diskfault_find(disk, target, fault->page);

	atomic_store_explicit(&tier->faulted_ns, fault->since_ns, memory_order_relaxed);
	if (read) {
		// On its way already: the copy wakes everybody who waits for the page.
		if (read->is_ahead) {
			usw_diskfault_call(disk, read);
			read->is_ahead = false;
			read->fault = *fault;
		} else if (usw_answer_is_hands(target, fault)) {
			read->fault.thread_id = fault->thread_id; // it may pass the limit
		}
		return USW_READING;
	}
	return usw_diskfault_begin(disk, thread->session, target, fault, false, id, place)
		       ? USW_READING
		       : USW_DEFER;
}

// --- Answers ------------------------------------------------------------------------------------

/** Where damage is, for the user: "disk tier disk1". */
static void name_tier(struct usw_session *session, uint64_t where, char *text, size_t bytes)
{
	snprintf(text, bytes, "disk tier %s", session->tiers.at[usw_where_tier(where)].name);
}

static struct usw_access access_of(const struct usw_disk_read *read)
{
	return read->is_ahead ? (struct usw_access){0} : usw_answer_access(&read->fault);
}

/** A page came in from a disk: because somebody waited for it, or ahead of that. */
static void count_read(struct usw_fault_thread *thread, const struct usw_disk_read *read,
		       uint64_t now)
{
	usw_count(thread, disk_pages, 1);
	if (read->is_ahead) {
		usw_count(&thread->counters, prefetched_pages, 1);
		return;
	}
	usw_count(&thread->counters, faults_disk, 1);
	usw_answer_count_touch(thread, read->target, now, true);
	usw_count(thread, disk_ns, (usw_now_ns() - read->fault.since_ns) / thread->disk->busy);
}

/** The page map's word for what was read, if it still names that; else NULL. */
static usw_page_word *find_named(const struct usw_fault_thread *thread,
				 const struct usw_disk_read *read, uint64_t *ret_now)
{
	usw_page_word *word = usw_answer_find_evicted(read->target, read->fault.page, ret_now);

	return word && usw_page_id(*ret_now) == read->id &&
			       usw_vswap_hash(&thread->session->vswap, read->id) == read->hash
		       ? word
		       : NULL;
}

/** A page that was read is settled, in whatever way: nobody waits for it here any more. */
static void end_read(struct usw_fault_thread *thread, struct usw_disk_read *read,
		     enum usw_verdict verdict)
{
	struct usw_segment *h =
		usw_segments_header(&thread->session->segments, read->place.segment);

	// A walk is over before its segments could be back.
	if (!read->is_ahead) {
		usw_fault_finish(thread, &read->fault, verdict);
		atomic_fetch_add_explicit(&h->refaults, 1, memory_order_relaxed);
		usw_content_touch(thread->session, read->place.segment);
	}
	usw_diskfault_done(thread->disk, read);
}

/** A page that was read has been looked at: is it still what the page map names? */
static enum usw_verdict settle_read(struct usw_fault_thread *thread, struct usw_disk_read *read)
{
	struct usw_session *session = thread->session;
	struct usw_target *target = read->target;
	struct usw_fault fault = read->fault; // a copy: the read may be over before the fault is
	const char *why = NULL;

	fault.is_again = true;
	int opened = read->stage == USW_READ_READY
			     ? 0
			     : usw_diskfault_open(thread->disk, session, read, &why);
	uint64_t now;
	usw_page_word *word = find_named(thread, read, &now);
	enum usw_verdict verdict;

	if (!word || opened == -EAGAIN) {
		bool is_ahead = read->is_ahead;

		usw_diskfault_done(thread->disk, read);
		if (!is_ahead)
			usw_fault_answer(thread, target, &fault); // it may wait, but not for this
		return USW_DROPPED;
	}
	if (opened) {
		char where[64];

		name_tier(session, read->place.object.where, where, sizeof(where));
		verdict = read->is_ahead ? USW_DROPPED
					 : usw_answer_poison(thread, target, fault.page, word, now,
							     where, why);
	} else if (!usw_answer_has_room(thread, target, &fault)) {
		verdict = read->is_ahead ? USW_DROPPED : USW_DEFER;
	} else if (read->is_ahead ? !usw_guards_clip(target, fault.page, 1)
				  : usw_guards_meet(target, fault.page)) {
		verdict = usw_answer_failed(thread, target, fault.page, -ENOENT);
	} else {
		int ret = usw_answer_hand_in(thread, target, fault.page, word, now,
					     usw_diskfault_page(read), USW_BACKEND_OBJECT, true,
					     access_of(read));

		verdict = ret ? usw_answer_failed(thread, target, fault.page, ret) : USW_ANSWERED;
		if (!ret)
			count_read(thread, read, now);
	}
	if (verdict == USW_DEFER)
		return USW_DEFER; // it stays ready, or is opened again
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
 * Hand in with one call what was read of a walk, pages in a row: one by one, the program would wake
 * for the first, run into the second, and sleep again, each time. Returns how many are settled; who
 * is left is settled alone.
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
		    read->fault.page != first->fault.page + count * USW_PAGE_BYTES)
			break;
		word[count] = find_opened(thread, read, &now[count]);
		if (!word[count])
			break;
		count++;
	}
	if (count > 1)
		count = usw_guards_clip(first->target, first->fault.page, count);
	if (count < 2)
		return 0;
	usw_uffd_copy(first->target->uffd, first->fault.page, usw_diskfault_page(first),
		      count * USW_PAGE_BYTES, &done);
	uint32_t brought = (uint32_t)(done / USW_PAGE_BYTES);
	atomic_fetch_add_explicit(&session->fault_clock, brought, memory_order_relaxed);
	usw_session_charge(session, brought);
	for (uint32_t i = 0; i < brought; i++) {
		usw_answer_settle(thread, word[i], now[i], USW_BACKEND_OBJECT, true,
				  access_of(&first[i]));
		count_read(thread, &first[i], now[i]);
		end_read(thread, &first[i], USW_ANSWERED);
	}
	return brought;
}

/**
 * Settle what was read ahead of a target's faults and is there, as much as a window. Who waits for
 * another page is woken after that: in a walk he touches these next, and would sleep again for each.
 */
static void settle_ahead(struct usw_fault_thread *thread, const struct usw_target *target)
{
	int64_t left = usw_session_room(thread->session) / 4;
	struct usw_disk_faults *disk = thread->disk;
	uint32_t settled;

	left = left < (int64_t)USW_STREAM_WINDOW_MAX ? left : (int64_t)USW_STREAM_WINDOW_MAX;
	for (uint32_t i = usw_diskfault_next(disk, 0); i < USW_DISK_READS_MAX && left > 0;
	     i = usw_diskfault_next(disk, i + settled)) {
		struct usw_disk_read *read = &disk->at[i];

		settled = 1;
		if (!read->is_ahead || read->target != target || !usw_diskfault_is_there(read))
			continue;
		settled = (uint32_t)usw_max(settle_run(thread, i), 1);
		if (usw_diskfault_is_there(read))
			settle_read(thread, read);
		left -= settled;
	}
}

/**
 * One read that the disk has answered. Returns how many are settled; 0: it must be looked at again.
 */
static uint32_t settle_at(struct usw_fault_thread *thread, uint32_t index)
{
	struct usw_disk_read *read = &thread->disk->at[index];

	if (!read->target) {
		usw_diskfault_done(thread->disk, read);
		return 1;
	}
	bool has_waited = read->stage == USW_READ_READY;
	uint32_t settled = settle_run(thread, index);
	if (settled)
		return settled;
	if (!read->is_ahead)
		settle_ahead(thread, read->target);
	if (!usw_diskfault_is_there(read))
		return 1; // in a run with them
	// What stands in the way of a page may be an event that nobody has read.
	if (has_waited)
		usw_fault_pump(thread, read->target);
	return settle_read(thread, read) != USW_DEFER;
}

/** Settle reads from number `from` on, `left` of them at most. True: one must be looked at again. */
static bool settle_between(struct usw_fault_thread *thread, uint32_t from, uint32_t end,
			   uint32_t *left)
{
	struct usw_disk_faults *disk = thread->disk;
	bool waiting = false;
	uint32_t settled;

	for (uint32_t i = usw_diskfault_next(disk, from); i < end && !disk->is_ripe;
	     i = usw_diskfault_next(disk, i + settled)) {
		settled = 1;
		if (!usw_diskfault_is_there(&disk->at[i]))
			continue;
		settled = settle_at(thread, i);
		if (!settled) {
			usw_reclaim_kick(thread->session);
			waiting = true;
			settled = 1;
			continue;
		}
		disk->looked = (i + settled) % USW_DISK_READS_MAX;
		disk->is_ripe |= --*left == 0; // or one was called meanwhile
	}
	return waiting;
}

bool usw_diskanswer_settle(struct usw_fault_thread *thread)
{
	struct usw_disk_faults *disk = thread->disk;

	if (!disk)
		return false;
	disk->is_ripe = false; // nothing is, where nothing is busy
	if (!disk->busy)
		return false;
	usw_diskfault_collect(disk);
	uint32_t first = disk->looked;
	uint32_t left = disk->busy < USW_SETTLE_DEPTH ? 1 : USW_SETTLE_MAX;
	bool waiting = settle_between(thread, first, USW_DISK_READS_MAX, &left);

	return settle_between(thread, 0, first, &left) || waiting;
}
