// SPDX-License-Identifier: MIT

/**
 * @file
 * In which order what has been told is followed. See event.h.
 *
 * All of it runs on the target's fault thread; the page map changes under map_lock. No page leaves
 * or comes while something is told and not followed: events_pending keeps batches away, answers
 * wait, and until the last event of the moment is read the kernel lets nobody move pages either.
 *
 * A call of the program is over before its events are told, one after the other, and a thread that
 * was interrupted tells late. Others' calls may come in between, and be told first:
 *
 *   - mremap(2) tells of its move, and then that it has unmapped the old place. That is free all
 *     the time: another thread's memory may be there by then, and has said so. The unmapping that a
 *     move brings takes nothing away.
 *   - The place that memory moves to is free. If by our books it is not, whoever left it has not
 *     said so yet: the move waits for that.
 *   - Memory of which our books know nothing, since none of it has left, may be what has left a place
 *     that was free by our books. Its move, told last, is not of what has come there: pages of that
 *     which are out are not present where the move has gone.
 *   - A child has what its parent had when it was made. Its fork waits for all that is announced, and
 *     the child itself tells which of the moves it has seen.
 *
 * What waits in vain (a place may be left without an event, MREMAP_DONTUNMAP unmaps nothing) is
 * known when the kernel answers again: then all that was announced has been read.
 */

#include <string.h>

#include "event.h"
#include "fault.h"
#include "layout.h"
#include "maps.h"
#include "uffd.h"

#define USW_LOOK_REGIONS 64u

static bool overlap(uint64_t a_start, uint64_t a_end, uint64_t b_start, uint64_t b_end)
{
	return a_start < b_end && b_start < a_end;
}

// --- Unmappings that moves bring ----------------------------------------------------------------

static void drop_owed(struct usw_target *target, uint32_t i)
{
	memmove(&target->owed[i], &target->owed[i + 1],
		(--target->owed_count - i) * sizeof(target->owed[0]));
}

static void expect_unmap(struct usw_target *target, uint64_t start, uint64_t end)
{
	// As many threads in mremap at a time, or moves that keep the old place: the oldest goes.
	if (target->owed_count == USW_OWED_MAX)
		drop_owed(target, 0);
	target->owed[target->owed_count++] = (struct usw_range){start, end};
}

/** Whether an unmapping is the second half of a move. It is expected no more. */
static bool was_expected(struct usw_target *target, uint64_t start, uint64_t end)
{
	for (uint32_t i = 0; i < target->owed_count; i++) {
		if (target->owed[i].start != start || target->owed[i].end != end)
			continue;
		drop_owed(target, i);
		return true;
	}
	return false;
}

// --- What has to wait ---------------------------------------------------------------------------

/** Whether by our books something is in a place. */
static bool is_taken(const struct usw_target *target, uint64_t start, uint64_t end)
{
	uint64_t address = start;
	uint32_t i = usw_ranges_find(&target->registered, start);

	return usw_pagemap_next(&target->pagemap, &address, end) ||
	       (i < target->registered.count && target->registered.at[i].start < end);
}

/** Whether a message concerns memory of which our books say that a move, told before, has it. */
static bool is_behind(const struct uffd_msg *message, const struct uffd_msg *move)
{
	uint64_t from = move->arg.remap.from, to = move->arg.remap.to, length = move->arg.remap.len;
	uint64_t start = message->arg.remove.start, end = message->arg.remove.end;

	switch (message->event) {
	case UFFD_EVENT_REMAP:
		start = message->arg.remap.from;
		return overlap(start, start + message->arg.remap.len, from, from + length);
	case UFFD_EVENT_UNMAP: // of the other place it may be what the move waits for
		return overlap(start, end, from, from + length);
	case UFFD_EVENT_REMOVE:
		return overlap(start, end, from, from + length) ||
		       overlap(start, end, to, to + length);
	default:
		return false;
	}
}

/** The first fork that waits; told_count: there is none. */
static uint32_t first_fork(const struct usw_target *target)
{
	uint32_t fork = 0;

	while (fork < target->told_count && target->told[fork].message.event != UFFD_EVENT_FORK)
		fork++;
	return fork;
}

/** Whether what has been told cannot be followed before other things are. */
static bool has_to_wait(struct usw_target *target, uint32_t which)
{
	const struct uffd_msg *message = &target->told[which].message;

	for (uint32_t i = 0; i < which; i++) {
		const struct uffd_msg *before = &target->told[i].message;

		if (before->event == UFFD_EVENT_FORK ||
		    (before->event == UFFD_EVENT_REMAP && is_behind(message, before)))
			return true;
	}
	if (message->event == UFFD_EVENT_REMAP)
		return is_taken(target, message->arg.remap.to,
				message->arg.remap.to + message->arg.remap.len);
	return message->event == UFFD_EVENT_FORK;
}

// --- Moves of what was there before -------------------------------------------------------------

static void note_come(struct usw_target *target, uint64_t start, uint64_t end)
{
	if (target->came_count < USW_OWED_MAX)
		target->came[target->came_count++] = (struct usw_range){start, end};
}

static bool has_come(const struct usw_target *target, uint64_t start, uint64_t end)
{
	for (uint32_t i = 0; i < target->came_count; i++)
		if (overlap(target->came[i].start, target->came[i].end, start, end))
			return true;
	return false;
}

/** Whether a move is of memory that was in its place before what our books know of. */
static bool is_of_before(const struct usw_target *target, const struct uffd_msg *move)
{
	uint64_t from = move->arg.remap.from, start = move->arg.remap.to;
	uint64_t end = start + move->arg.remap.len;

	if (target->pagemap_fd < 0 || !has_come(target, from, from + move->arg.remap.len))
		return false;
	for (uint64_t shift = start - from; start < end;) {
		struct page_region regions[USW_LOOK_REGIONS];
		uint64_t walk_end = end;
		int count = usw_maps_present(target->pagemap_fd, start, end, regions,
					     USW_LOOK_REGIONS, &walk_end);

		for (int i = 0; i < count; i++)
			if (!(regions[i].categories & PAGE_IS_SWAPPED) &&
			    usw_target_has_out(target, regions[i].start - shift,
					       regions[i].end - shift))
				return true;
		if (count < 0 || walk_end <= start)
			return false;
		start = walk_end;
	}
	return false;
}

// --- Following ----------------------------------------------------------------------------------

static struct usw_told take_told(struct usw_target *target, uint32_t which)
{
	struct usw_told told = target->told[which];

	memmove(&target->told[which], &target->told[which + 1],
		(--target->told_count - which) * sizeof(target->told[0]));
	return told;
}

static void follow_move(struct usw_target *target, const struct uffd_msg *move)
{
	uint64_t to = move->arg.remap.to, length_bytes = move->arg.remap.len;

	if (is_of_before(target, move)) {
		usw_layout_unmap(target, to, to + length_bytes); // nothing of it has left
		return;
	}
	usw_layout_remap(target, move->arg.remap.from, to, length_bytes);
	note_come(target, to, to + length_bytes);
}

static void follow_one(struct usw_target *target, uint32_t which)
{
	struct usw_told told = take_told(target, which);
	const struct uffd_msg *message = &told.message;

	switch (message->event) {
	case UFFD_EVENT_FORK:
		usw_fault_turn_away(target, told.child);
		usw_layout_settle_fork(target); // or this child gets what is in doubt
		usw_layout_fork(target, told.child);
		break;
	case UFFD_EVENT_REMAP:
		follow_move(target, message);
		break;
	case UFFD_EVENT_REMOVE:
		usw_layout_remove(target, message->arg.remove.start, message->arg.remove.end);
		break;
	case UFFD_EVENT_UNMAP:
		if (!told.is_expected)
			usw_layout_unmap(target, message->arg.remove.start,
					 message->arg.remove.end);
		break;
	default:
		break;
	}
}

/** Follow what need not wait, in the order in which it was told. */
static void follow(struct usw_target *target)
{
	for (uint32_t i = 0; i < target->told_count;) {
		if (has_to_wait(target, i)) {
			i++;
			continue;
		}
		follow_one(target, i);
		i = 0; // others may have waited for this
	}
}

// --- Forks --------------------------------------------------------------------------------------

/** Whether the memory at a page is not copied to children (MADV_DONTFORK). */
static bool is_not_copied(const struct usw_target *target, uint64_t page)
{
	struct usw_maps_advised advised;

	if (target->smaps_fd < 0)
		return false;
	bool is_so = !usw_maps_advised(target->smaps_fd, &advised) &&
		     usw_ranges_cover(&advised.not_copied, page, page + USW_PAGE_BYTES);
	usw_maps_advised_free(&advised);
	return is_so;
}

/** Whether a move, told behind a fork, is of memory that came to its place after that. */
static bool has_come_since(const struct usw_target *parent, uint32_t fork, uint32_t which)
{
	uint64_t from = parent->told[which].message.arg.remap.from;

	for (uint32_t i = fork + 1; i < which; i++) {
		const struct uffd_msg *before = &parent->told[i].message;
		uint64_t to = before->arg.remap.to;

		if (before->event == UFFD_EVENT_REMAP &&
		    overlap(to, to + before->arg.remap.len, from, from + USW_PAGE_BYTES))
			return true;
	}
	return false;
}

/** Whether a message says that what was in a place has left it. */
static bool has_emptied(const struct uffd_msg *message, uint64_t start, uint64_t end)
{
	uint64_t from = message->arg.remap.from;

	if (message->event == UFFD_EVENT_UNMAP)
		return overlap(message->arg.remove.start, message->arg.remove.end, start, end);
	return message->event == UFFD_EVENT_REMAP &&
	       overlap(from, from + message->arg.remap.len, start, end);
}

/** Whether a message that was told before another says that. */
static bool was_emptied(const struct usw_target *parent, uint32_t which, uint64_t start,
			uint64_t end)
{
	for (uint32_t i = 0; i < which; i++)
		if (has_emptied(&parent->told[i].message, start, end))
			return true;
	return false;
}

/** Whether by our books something was in a place before all that was told before a message. */
static bool was_taken(const struct usw_target *parent, uint32_t which, uint64_t start, uint64_t end)
{
	return !was_emptied(parent, which, start, end) && is_taken(parent, start, end);
}

/**
 * Whether the memory that has moved was missing in its old place all the same when the child was made.
 * What is on our list was registered by then, so only if no child gets it. The rest may have been
 * there, registered later, or may have come there later.
 */
static bool was_missing(const struct usw_target *parent, uint32_t fork, uint32_t which)
{
	const struct usw_target *child = parent->told[fork].child;
	uint64_t from = parent->told[which].message.arg.remap.from;
	uint64_t to = parent->told[which].message.arg.remap.to;

	if (usw_uffd_is_vacant(child->uffd, to))
		return !usw_uffd_is_vacant(child->uffd, from) ||
		       has_come_since(parent, fork, which);
	if (!was_taken(parent, which, from, from + USW_PAGE_BYTES) &&
	    (!usw_uffd_is_vacant(child->uffd, from) || has_come_since(parent, fork, which)))
		return true;
	return is_not_copied(parent, to);
}

/**
 * Whether nothing is in the old place of a move in the child. One that has told of something itself is
 * not asked that way: it may have emptied the place, and has it where it is now if it has seen the move.
 */
static bool has_left(const struct usw_target *child, const struct uffd_msg *move)
{
	if (move->event != UFFD_EVENT_REMAP)
		return false;
	enum usw_uffd_kind kind = usw_uffd_probe(child->uffd, move->arg.remap.from);

	if (kind != USW_UFFD_UNKNOWN)
		return kind == USW_UFFD_NONE;
	return !usw_uffd_claim(child->uffd, move->arg.remap.from) &&
	       usw_uffd_claim(child->uffd, move->arg.remap.to);
}

/** Whether the old place of a move is empty in the child by that. */
static bool has_gone(const struct usw_target *parent, uint32_t fork, uint32_t which)
{
	const struct usw_target *child = parent->told[fork].child;

	return has_left(child, &parent->told[which].message) && !was_missing(parent, fork, which);
}

/**
 * Whether the child has what has moved to the old place of a move, and was made after that as well.
 * Told later, it has found the place empty. Told before, it may be the very memory that has moved on,
 * which it did when the fork had been told: unless other memory was there before, by our books.
 */
static bool has_next(const struct usw_target *parent, uint32_t fork, uint32_t which)
{
	uint64_t from = parent->told[which].message.arg.remap.from;
	uint64_t end = from + parent->told[which].message.arg.remap.len;

	for (uint32_t i = 0; i < parent->told_count; i++)
		if (parent->told[i].message.arg.remap.to == from && has_gone(parent, fork, i) &&
		    (i > which || was_taken(parent, which, from, end)))
			return true;
	return false;
}

/** Whether the unmapping that a move brings has not been told: the old place is still there. */
static bool is_kept(const struct usw_target *parent, const struct uffd_msg *move)
{
	uint64_t from = move->arg.remap.from;

	for (uint32_t i = 0; i < parent->owed_count; i++)
		if (parent->owed[i].start == from &&
		    parent->owed[i].end == from + move->arg.remap.len)
			return true;
	return false;
}

/** Whether the child has the new place of a move, where by what is told nothing was before. */
static bool has_arrived(const struct usw_target *parent, uint32_t fork, uint32_t which)
{
	const struct uffd_msg *move = &parent->told[which].message;
	uint64_t to = move->arg.remap.to, end = to + move->arg.remap.len;

	return !was_emptied(parent, which, to, end) && !is_taken(parent, to, end) &&
	       usw_uffd_probe(parent->told[fork].child->uffd, to) == USW_UFFD_ANONYMOUS;
}

/** Whether the child was made after a move: the old place is empty by that, or the next is there. */
static bool has_seen(const struct usw_target *parent, uint32_t fork, uint32_t which)
{
	const struct usw_target *child = parent->told[fork].child;
	const struct uffd_msg *move = &parent->told[which].message;

	if (move->event != UFFD_EVENT_REMAP)
		return false;
	if (has_left(child, move))
		return !was_missing(parent, fork, which);
	if (is_kept(parent, move) && has_arrived(parent, fork, which))
		return true;
	return has_next(parent, fork, which);
}

/** Whether an unmapping has made room for a move. */
static bool has_made_room(const struct uffd_msg *unmap, const struct uffd_msg *move)
{
	return unmap->event == UFFD_EVENT_UNMAP &&
	       overlap(unmap->arg.remove.start, unmap->arg.remove.end, move->arg.remap.to,
		       move->arg.remap.to + move->arg.remap.len);
}

static void put_before(struct usw_target *target, uint32_t which, uint32_t *place)
{
	struct usw_told told = take_told(target, which);

	memmove(&target->told[*place + 1], &target->told[*place],
		(target->told_count++ - *place) * sizeof(target->told[0]));
	target->told[(*place)++] = told;
}

/** Put the moves that a child has seen before its fork, the first that waits. */
static void order_fork(struct usw_target *target)
{
	uint32_t fork = first_fork(target);

	for (uint32_t i = fork + 1; i < target->told_count; i++) {
		struct uffd_msg move = target->told[i].message;

		if (!has_seen(target, fork, i))
			continue;
		for (uint32_t j = fork + 1; j < i; j++)
			if (has_made_room(&target->told[j].message, &move))
				put_before(target, j, &fork);
		put_before(target, i, &fork);
	}
}

/** Take note of a child. It waits, from its first fault on, for its fork to be followed. */
static struct usw_target *expect_child(struct usw_target *parent, int uffd)
{
	struct usw_target *child = usw_target_create(parent->session);

	if (!child) {
		// Closing the descriptor would leave the child with zeros for evicted pages, and
		// without its pid it cannot be killed: end the parent, which ends the session.
		usw_session_kill_all(parent->session, "out of memory while following a fork");
		return NULL;
	}
	child->uffd = uffd;
	child->token_page = parent->token_page;
	atomic_store(&child->armed, true);
	usw_fault_await(parent, child);
	return child;
}

// --- All ----------------------------------------------------------------------------------------

/** Follow all that has been told, as if nothing more was announced. */
static void follow_all(struct usw_target *target)
{
	while (target->told_count) {
		order_fork(target);
		follow(target);
		if (target->told_count)
			follow_one(target, 0);
	}
}

static void hear(struct usw_target *target, const struct uffd_msg *message)
{
	struct usw_counters *counters = &target->thread->counters;
	struct usw_told told = {.message = *message};

	switch (message->event) {
	case UFFD_EVENT_FORK:
		usw_count(counters, events_fork, 1);
		told.child = expect_child(target, (int)message->arg.fork.ufd);
		if (!told.child)
			return;
		break;
	case UFFD_EVENT_REMAP:
		usw_count(counters, events_remap, 1);
		expect_unmap(target, message->arg.remap.from,
			     message->arg.remap.from + message->arg.remap.len);
		break;
	case UFFD_EVENT_REMOVE:
		usw_count(counters, events_remove, 1);
		break;
	case UFFD_EVENT_UNMAP:
		usw_count(counters, events_unmap, 1);
		told.is_expected =
			was_expected(target, message->arg.remove.start, message->arg.remove.end);
		// A move that has kept its place expects it all the same: who orders a fork has to know.
		if (told.is_expected && first_fork(target) == target->told_count)
			return;
		break;
	default:
		return;
	}
	if (target->told_count == USW_TOLD_MAX)
		follow_all(target);
	target->told[target->told_count++] = told;
}

/** The page map tells the truth again, unless something has to wait. Caller holds map_lock. */
static void publish(struct usw_target *target)
{
	atomic_store(&target->layout_changed, true);
	atomic_store(&target->events_pending, target->told_count > 0);
}

void usw_event_apply(struct usw_target *target, const struct uffd_msg *messages, int count)
{
	pthread_mutex_lock(&target->map_lock);
	usw_target_wipe(target);
	for (int i = 0; i < count; i++) {
		hear(target, &messages[i]);
		follow(target);
	}
	// A handshake that mapped the ring meanwhile (under the lock) may have missed the last
	// rise.
	if (target->ring)
		__atomic_store_n(&target->ring->epoch, atomic_load(&target->epoch),
				 __ATOMIC_SEQ_CST);
	publish(target);
	pthread_mutex_unlock(&target->map_lock);
}

void usw_event_conclude(struct usw_target *target)
{
	if (target->told_count || target->maybe_left.count) {
		pthread_mutex_lock(&target->map_lock);
		follow_all(target);
		usw_layout_settle_fork(target);
		publish(target);
		pthread_mutex_unlock(&target->map_lock);
	}
	target->came_count = target->owed_count = 0; // only now: to follow asks for them
}

void usw_event_settle(struct usw_target *target)
{
	if (!target->owed_count && !target->told_count && !target->came_count &&
	    !target->maybe_left.count)
		return;
	if (usw_uffd_probe(target->uffd, target->token_page) != USW_UFFD_UNKNOWN ||
	    usw_uffd_is_dead(target->uffd))
		usw_event_conclude(target);
}
