// SPDX-License-Identifier: MIT

/**
 * @file
 * What one change of an address space does to the page map and the list. See layout.h.
 *
 * No batch is in flight, so no page is EVICTING (unless the target is lost anyway).
 */

#include "layout.h"
#include "maps.h"
#include "uffd.h"

static void forget_and_prune(struct usw_target *target, uint64_t start, uint64_t end)
{
	usw_target_forget(target, start, end);
	usw_pagemap_prune(&target->pagemap, start, end);
}

void usw_layout_remove(struct usw_target *target, uint64_t start, uint64_t end)
{
	forget_and_prune(target, start, end);
	if (!usw_leaving_note(&target->leaving, target->pagemap_fd, start, end))
		usw_target_kill(target, "out of memory while following a madvise");
}

void usw_layout_unmap(struct usw_target *target, uint64_t start, uint64_t end)
{
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

/** Memory moves to a place that is free: of what was in doubt there a child has got nothing. */
static void forget_left(struct usw_target *target, uint64_t start, uint64_t end)
{
	struct usw_ranges *left = &target->maybe_left;
	uint32_t i;

	while ((i = usw_ranges_find(left, start)) < left->count && left->at[i].start < end) {
		struct usw_range range = left->at[i];

		forget_and_prune(target, range.start, range.end);
		// In doubt no more: what moves there next is not to be forgotten.
		if (!usw_ranges_remove(left, range.start, range.end))
			break;
	}
}

/**
 * What was on the list of registered ranges stays on it, piece by piece: words outside of the list
 * count as left over, and are forgotten when their place is registered again.
 */
void usw_layout_remap(struct usw_target *target, uint64_t from, uint64_t to, uint64_t length_bytes)
{
	forget_left(target, to, to + length_bytes); // it may have grown into more of that
	forget_and_prune(target, to, to + length_bytes);
	// A madvise(2) that has not got there yet finds other memory, or none.
	usw_leaving_returned(&target->leaving, from, from + length_bytes);
	usw_leaving_returned(&target->leaving, to, to + length_bytes);
	if (!move_words(target, from, to, length_bytes) ||
	    !move_registered(target, from, to, length_bytes))
		usw_target_kill(target, "out of memory while following a remap");
	usw_pagemap_prune(&target->pagemap, from, from + length_bytes);
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

/** What the parent has said a child is to have as zeros; once it is known what the child has. */
static bool note_wiped(struct usw_target *child, const struct usw_ranges *wiped)
{
	bool fits = true;

	for (uint32_t i = 0; i < wiped->count; i++) {
		uint64_t address = wiped->at[i].start;

		if (usw_pagemap_next(&child->pagemap, &address, wiped->at[i].end))
			fits &= usw_ranges_add(&child->maybe_wiped, wiped->at[i].start,
					       wiped->at[i].end);
	}
	atomic_store(&child->may_be_wiped, child->maybe_wiped.count > 0);
	return fits;
}

/** Whether what has moved has grown over a page: of that no event tells, but it is one mapping. */
static bool is_grown_over(const struct usw_target *target, uint64_t page)
{
	for (uint32_t i = 0; i < target->came_count; i++) {
		uint64_t end = target->came[i].end;

		if (end <= page &&
		    usw_uffd_is_whole(target->uffd, end - USW_PAGE_BYTES, page + USW_PAGE_BYTES))
			return true;
	}
	return false;
}

/**
 * What no child of the parent gets, page by page, for the advice may be younger than the child. It
 * would be found in what the child has in its place later. False: the kernel does not say now.
 */
static bool leave_behind(struct usw_target *child, uint64_t start, uint64_t end)
{
	enum usw_uffd_kind found = USW_UFFD_NONE;

	for (uint64_t address = start;
	     found != USW_UFFD_UNKNOWN && usw_pagemap_next(&child->pagemap, &address, end);
	     address += USW_PAGE_BYTES) {
		found = usw_uffd_probe(child->uffd, address);
		if (found == USW_UFFD_NONE || is_grown_over(child, address))
			usw_target_forget(child, address, address + USW_PAGE_BYTES);
	}
	return found != USW_UFFD_UNKNOWN;
}

/** A child runs already, and may have told of something that nobody has read yet. */
static bool leave_all_behind(struct usw_target *child, const struct usw_ranges *not_copied)
{
	bool fits = true;

	for (uint32_t i = 0; i < not_copied->count; i++)
		if (!leave_behind(child, not_copied->at[i].start, not_copied->at[i].end))
			fits &= usw_ranges_add(&child->maybe_left, not_copied->at[i].start,
					       not_copied->at[i].end);
	return fits;
}

void usw_layout_settle_fork(struct usw_target *child)
{
	for (uint32_t i = 0; i < child->maybe_left.count; i++)
		leave_behind(child, child->maybe_left.at[i].start, child->maybe_left.at[i].end);
	usw_ranges_free(&child->maybe_left);
}

/**
 * Ranges that the child has as zeros or not at all, although the parent's content was evicted. Only
 * smaps tells which, so it is read only if something was evicted at all. The parent runs on as soon
 * as its event was read, and may say MADV_WIPEONFORK of what the child has: so the child's handshake
 * has the last word, also if the parent is gone by now. What the child does not have is left to that,
 * too (usw_target_check_inherited()), but some children have none.
 */
static void follow_advice(struct usw_target *parent, struct usw_target *child)
{
	struct usw_maps_advised advised;
	uint64_t address = 0;

	if (!usw_pagemap_next(&child->pagemap, &address, USW_ADDRESS_END))
		return;
	if (parent->smaps_fd < 0) {
		child->inherited_unchecked = true;
		return;
	}
	bool is_known = !usw_maps_advised(parent->smaps_fd, &advised);
	is_known &= note_wiped(child, &advised.wiped);
	is_known &= leave_all_behind(child, &advised.not_copied);
	if (!is_known)
		child->inherited_unchecked = true;
	usw_maps_advised_free(&advised);
}

static bool copy_ranges(struct usw_ranges *to, const struct usw_ranges *from)
{
	for (uint32_t i = 0; i < from->count; i++)
		if (!usw_ranges_append(to, from->at[i].start, from->at[i].end))
			return false;
	return true;
}

void usw_layout_fork(struct usw_target *parent, struct usw_target *child)
{
	bool fits = share_words(parent, child) &&
		    copy_ranges(&child->registered, &parent->registered);
	uint32_t id;

	follow_advice(parent, child);
	if (usw_session_adopt(parent->session, child, &id) || !fits)
		usw_session_kill_all(parent->session, "out of memory while following a fork");
}
