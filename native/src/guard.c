// SPDX-License-Identifier: MIT

/**
 * @file
 * Looking for guards. See guard.h.
 */

#include <errno.h>
#include <sys/mman.h>

#include "guard.h"
#include "session.h"
#include "uffd.h"

#define USW_SCAN_REGIONS 64u
/* As much as the sweep scans at once: 20 us. */
#define USW_FORGET_BYTES (16ull << 20)

bool usw_guards_exist(void)
{
	void *page = mmap(NULL, USW_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	if (page == MAP_FAILED)
		return true; // to look for what does not exist costs little
	bool exist = madvise(page, USW_PAGE_BYTES, MADV_GUARD_INSTALL) == 0 || errno != EINVAL;
	munmap(page, USW_PAGE_BYTES);
	return exist;
}

bool usw_guards_are_seen(const struct usw_target *target)
{
	return !target->session->has_guards ||
	       atomic_load_explicit(&target->has_hands, memory_order_acquire);
}

uint32_t usw_guards_before(const struct usw_target *target, uint64_t page, uint32_t count)
{
	uint64_t end = page + (uint64_t)count * USW_PAGE_BYTES;
	struct page_region guard;
	uint64_t walk_end;

	if (!count || !target->session->has_guards)
		return count;
	if (!usw_guards_are_seen(target))
		return 0;
	int found = usw_maps_guards(target->pagemap_fd, page, end, &guard, 1, &walk_end);
	if (found < 0)
		return 0;
	return found ? (uint32_t)((guard.start - page) / USW_PAGE_BYTES) : count;
}

uint32_t usw_guards_clip(struct usw_target *target, uint64_t page, uint32_t count)
{
	uint32_t before = usw_guards_before(target, page, count);

	if (usw_unlikely(before < count))
		usw_guards_forget(target, page + (uint64_t)before * USW_PAGE_BYTES);
	return before;
}

bool usw_guards_meet(struct usw_target *target, uint64_t page)
{
	return usw_guards_are_seen(target) && !usw_guards_clip(target, page, 1);
}

static void forget_evicted(struct usw_target *target, const struct page_region *guard)
{
	usw_page_word *word;

	for (uint64_t address = guard->start;
	     (word = usw_pagemap_next(&target->pagemap, &address, guard->end));
	     address += USW_PAGE_BYTES) {
		uint64_t now = atomic_load_explicit(word, memory_order_acquire);

		if (usw_page_state(now) != USW_PAGE_EVICTED)
			continue;
		usw_page_transition(word, now, usw_page_make(USW_PAGE_NONE, 0, 0, 0));
		usw_vswap_put(&target->session->vswap, usw_page_id(now));
	}
}

/**
 * The lock keeps pages from leaving between the look and the words: what has left, and is there in
 * some other way than in memory, was replaced. That holds unless memory was moved and its event is
 * unread or waits, so that the words are of something else: then it is left for the next time.
 */
void usw_guards_forget(struct usw_target *target, uint64_t start)
{
	struct page_region guards[USW_SCAN_REGIONS];
	uint64_t end = start + USW_FORGET_BYTES;

	if (!atomic_load(&target->has_hands) || target->told_count)
		return;
	pthread_mutex_lock(&target->map_lock);
	while (start < end) {
		uint64_t walk_end = end;
		int count = usw_maps_guards(target->pagemap_fd, start, end, guards,
					    USW_SCAN_REGIONS, &walk_end);

		if (count <= 0 || usw_uffd_probe(target->uffd, guards[0].start) == USW_UFFD_UNKNOWN)
			break;
		for (int i = 0; i < count; i++)
			forget_evicted(target, &guards[i]);
		start = walk_end;
	}
	pthread_mutex_unlock(&target->map_lock);
}

int usw_guards_take_out(struct usw_target *target, struct page_region *regions, int count)
{
	int left = 0;

	for (int i = 0; i < count; i++) {
		if (!(regions[i].categories & PAGE_IS_SWAPPED))
			regions[left++] = regions[i];
		else if (usw_target_has_out(target, regions[i].start, regions[i].end))
			usw_target_ask_forget(target, regions[i].start);
	}
	return left;
}
