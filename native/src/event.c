// SPDX-License-Identifier: MIT

/**
 * @file
 * Applying events to the page map. See event.h.
 *
 * All of it runs on the target's fault thread under map_lock: no batch is in flight, so no page is
 * EVICTING (unless the target is lost anyway), and a fork is seen exactly as it was: while its
 * event was unread the kernel let nobody move pages in or out.
 */

#include <errno.h>
#include <string.h>

#include "event.h"
#include "uffd.h"

static void forget_and_prune(struct usw_target *target, uint64_t start, uint64_t end)
{
	usw_target_forget(target, start, end);
	usw_pagemap_prune(&target->pagemap, start, end);
}

static void apply_remove(struct usw_target *target, uint64_t start, uint64_t end)
{
	forget_and_prune(target, start, end);
	if (!usw_leaving_note(&target->leaving, target->pagemap_fd, start, end))
		usw_target_kill(target, "out of memory while following a madvise");
}

// --- Moves that have not said all ---------------------------------------------------------------

/*
 * mremap(2) says that it has moved memory, and when that has been read and its thread runs again, that
 * it has unmapped the old place. That place is free all the time: another thread may have moved its
 * memory there by then and have said so. Nothing else can be there, for as long as an event is
 * announced no page comes in.
 */

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

/** Whether an unmapping is the second half of a move, which has taken all away. */
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

void usw_event_settle(struct usw_target *target)
{
	// With MREMAP_DONTUNMAP nothing more comes. The kernel answers again once all that was
	// announced has been read.
	if (target->owed_count &&
	    usw_uffd_probe(target->uffd, target->token_page) != USW_UFFD_UNKNOWN)
		target->owed_count = 0;
}

// --- One event ----------------------------------------------------------------------------------

static void apply_unmap(struct usw_target *target, uint64_t start, uint64_t end)
{
	if (was_expected(target, start, end))
		return;
	forget_and_prune(target, start, end);
	usw_leaving_returned(&target->leaving, start, end); // it is gone
	if (!usw_ranges_remove(&target->registered, start, end))
		usw_target_kill(target, "out of memory while following an unmap");
}

/** Move the words of a range. False: no memory for a node. */
static bool move_words(struct usw_target *target, uint64_t from, uint64_t to, uint64_t length_bytes)
{
	uint64_t address = from;
	usw_page_word *word;

	while ((word = usw_pagemap_next(&target->pagemap, &address, from + length_bytes))) {
		usw_page_word *there = usw_pagemap_make(&target->pagemap, address - from + to);

		if (!there)
			return false;
		atomic_store_explicit(there, atomic_load_explicit(word, memory_order_relaxed),
				      memory_order_release);
		atomic_store_explicit(word, 0, memory_order_release);
		address += USW_PAGE_BYTES;
	}
	return true;
}

/** Put on the list at `to` what of [from, from + length) is on it. False: no memory. */
static bool move_registered(struct usw_target *target, uint64_t from, uint64_t to,
			    uint64_t length_bytes)
{
	struct usw_ranges moved = {0};
	const struct usw_ranges *all = &target->registered;
	uint64_t end = from + length_bytes;
	bool fits = true;

	for (uint32_t i = usw_ranges_find(all, from);
	     fits && i < all->count && all->at[i].start < end; i++)
		fits = usw_ranges_append(&moved, usw_max(all->at[i].start, from) - from + to,
					 usw_min(all->at[i].end, end) - from + to);
	fits = fits && usw_ranges_remove(&target->registered, from, end) &&
	       usw_ranges_remove(&target->registered, to, to + length_bytes);
	for (uint32_t i = 0; fits && i < moved.count; i++)
		fits = usw_ranges_add(&target->registered, moved.at[i].start, moved.at[i].end);
	usw_ranges_free(&moved);
	return fits;
}

/**
 * What was on the list of registered ranges stays on it, piece by piece: words outside of the list
 * count as left over, and are forgotten when their place is registered again.
 */
static void apply_remap(struct usw_target *target, uint64_t from, uint64_t to,
			uint64_t length_bytes)
{
	forget_and_prune(target, to, to + length_bytes);
	// A madvise(2) that has not got there yet finds other memory, or none.
	usw_leaving_returned(&target->leaving, from, from + length_bytes);
	usw_leaving_returned(&target->leaving, to, to + length_bytes);
	if (!move_words(target, from, to, length_bytes) ||
	    !move_registered(target, from, to, length_bytes))
		usw_target_kill(target, "out of memory while following a remap");
	usw_pagemap_prune(&target->pagemap, from, from + length_bytes);
	expect_unmap(target, from, from + length_bytes);
}

/** The child refers to the same descriptors: counts go up, not one page is copied. */
static bool share_words(struct usw_target *parent, struct usw_target *child)
{
	uint64_t address = 0;
	usw_page_word *word;

	while ((word = usw_pagemap_next(&parent->pagemap, &address, USW_ADDRESS_END))) {
		uint64_t now = atomic_load_explicit(word, memory_order_relaxed);
		usw_page_word *there = usw_pagemap_make(&child->pagemap, address);

		if (!there)
			return false;
		if (usw_page_state(now) == USW_PAGE_EVICTING) {
			usw_assert(atomic_load(&parent->broken));
			atomic_store(&child->broken, true);
		}
		if (usw_page_id(now))
			usw_vswap_get(&parent->session->vswap, usw_page_id(now));
		atomic_store_explicit(there, now, memory_order_relaxed);
		address += USW_PAGE_BYTES;
	}
	return true;
}

/**
 * Ranges that the child has as zeros, although the parent's content was evicted. Only smaps tells
 * which, so it is read only if something was evicted at all. The parent runs on as soon as its
 * event was read, and may say MADV_WIPEONFORK of what the child has: so the child's handshake has
 * the last word, also if the parent is gone by now. What the child does not have at all is left to
 * that, too: see usw_target_check_inherited().
 */
static void note_wiped(struct usw_target *parent, struct usw_target *child)
{
	struct usw_ranges wiped = {0};
	uint64_t address = 0;
	bool fits = true;

	if (!usw_pagemap_next(&child->pagemap, &address, USW_ADDRESS_END))
		return;
	if (parent->smaps_fd < 0 || usw_maps_wiped(parent->smaps_fd, &wiped))
		child->inherited_unchecked = true;
	for (uint32_t i = 0; i < wiped.count; i++) {
		address = wiped.at[i].start;
		if (usw_pagemap_next(&child->pagemap, &address, wiped.at[i].end))
			fits &= usw_ranges_add(&child->maybe_wiped, wiped.at[i].start,
					       wiped.at[i].end);
	}
	usw_ranges_free(&wiped);
	atomic_store(&child->may_be_wiped, child->maybe_wiped.count > 0);
	if (!fits)
		child->inherited_unchecked = true;
}

static bool copy_ranges(struct usw_ranges *to, const struct usw_ranges *from)
{
	for (uint32_t i = 0; i < from->count; i++)
		if (!usw_ranges_append(to, from->at[i].start, from->at[i].end))
			return false;
	return true;
}

static void apply_fork(struct usw_target *parent, int uffd)
{
	struct usw_target *child = usw_target_create(parent->session);

	if (!child) {
		// Closing the descriptor would leave the child with zeros for evicted pages, and
		// without its pid it cannot be killed: end the parent, which ends the session.
		usw_session_kill_all(parent->session, "out of memory while following a fork");
		return;
	}
	child->uffd = uffd;
	child->token_page = parent->token_page;
	atomic_store(&child->armed, true);
	bool fits = share_words(parent, child) &&
		    copy_ranges(&child->registered, &parent->registered);
	note_wiped(parent, child);
	uint32_t id;
	if (usw_session_adopt(parent->session, child, &id) || !fits)
		usw_session_kill_all(parent->session, "out of memory while following a fork");
}

void usw_event_apply(struct usw_target *target, const struct uffd_msg *messages, int count)
{
	struct usw_counters *counters = &target->thread->counters;

	pthread_mutex_lock(&target->map_lock);
	usw_target_wipe(target);
	for (int i = 0; i < count; i++) {
		const struct uffd_msg *message = &messages[i];

		switch (message->event) {
		case UFFD_EVENT_FORK:
			usw_count(counters, events_fork, 1);
			apply_fork(target, (int)message->arg.fork.ufd);
			break;
		case UFFD_EVENT_REMAP:
			usw_count(counters, events_remap, 1);
			apply_remap(target, message->arg.remap.from, message->arg.remap.to,
				    message->arg.remap.len);
			break;
		case UFFD_EVENT_REMOVE:
			usw_count(counters, events_remove, 1);
			apply_remove(target, message->arg.remove.start, message->arg.remove.end);
			break;
		case UFFD_EVENT_UNMAP:
			usw_count(counters, events_unmap, 1);
			apply_unmap(target, message->arg.remove.start, message->arg.remove.end);
			break;
		default:
			break;
		}
	}
	// A handshake that mapped the ring meanwhile (under the lock) may have missed the last
	// rise.
	if (target->ring)
		__atomic_store_n(&target->ring->epoch, atomic_load(&target->epoch),
				 __ATOMIC_SEQ_CST);
	atomic_store(&target->layout_changed, true);
	atomic_store(&target->events_pending, false);
	pthread_mutex_unlock(&target->map_lock);
}
