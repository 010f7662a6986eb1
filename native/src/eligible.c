// SPDX-License-Identifier: MIT

/**
 * @file
 * Reading mappings, and registering them. See eligible.h.
 */

#include <errno.h>
#include <string.h>

#include "eligible.h"

/* How long it is believed that the kernel refuses a mapping. */
#define USW_REFUSAL_NS 1000000000u

/** Leave a range out of what may be managed. False: no memory. */
static bool leave_out(struct usw_target *target, uint64_t start, uint64_t end)
{
	return usw_ranges_remove(&target->eligible.mappings, start, end) &&
	       usw_ranges_remove(&target->eligible.spans, start, end) &&
	       usw_ranges_remove(&target->eligible.stretches, start, end);
}

/** Tell the watch thread where the target may grow: the largest stretches, if there are many. */
static void publish_stretches(struct usw_target *target)
{
	const struct usw_ranges *all = &target->eligible.stretches;

	pthread_mutex_lock(&target->stretches_lock);
	target->stretch_count = 0;
	for (uint32_t i = 0; i < all->count; i++) {
		uint32_t at = target->stretch_count;

		while (at > 0 && target->stretches[at - 1].end - target->stretches[at - 1].start <
					 all->at[i].end - all->at[i].start)
			at--;
		if (at == USW_STRETCHES_MAX)
			continue;
		if (target->stretch_count < USW_STRETCHES_MAX)
			target->stretch_count++;
		memmove(&target->stretches[at + 1], &target->stretches[at],
			(target->stretch_count - 1 - at) * sizeof(target->stretches[0]));
		target->stretches[at] = all->at[i];
	}
	pthread_mutex_unlock(&target->stretches_lock);
}

int usw_eligible_read(struct usw_target *target)
{
	uint64_t begun_ns = usw_now_ns();
	int ret = usw_maps_read(target->maps_fd, &target->eligible);
	if (ret)
		return ret;

	target->looked_ns = usw_now_ns();
	target->look_ns = target->looked_ns - begun_ns;
	// A refusal is worth asking again now and then: mappings come and go.
	if (target->looked_ns - target->refused_ns > USW_REFUSAL_NS) {
		target->refused.count = 0;
		target->refused_ns = target->looked_ns;
	}
	bool fits = leave_out(target, target->area_start, target->area_start + USW_AREA_BYTES) &&
		    leave_out(target, target->token_page, target->token_page + USW_PAGE_BYTES);
	for (uint32_t i = 0; fits && i < target->refused.count; i++)
		fits = leave_out(target, target->refused.at[i].start, target->refused.at[i].end);
	if (!fits)
		return -ENOMEM;
	publish_stretches(target);
	target->eligible_stale = false;
	return 0;
}

/** What the kernel does not let us have is left out from now on. */
static void refuse(struct usw_target *target, uint64_t start, uint64_t end)
{
	if (usw_ranges_add(&target->refused, start, end))
		leave_out(target, start, end);
}

/**
 * Whether pages may leave from a range: all of it is on the list of registered ranges. Registering
 * without an error is not enough: what was not mapped at that moment, or was cut short by a change,
 * is not on the list, and memory that comes in its place is not registered.
 */
static bool ensure_registered(struct usw_target *target, uint64_t start, uint64_t end)
{
	if (usw_ranges_cover(&target->registered, start, end))
		return true;

	int ret = usw_target_register(target, start, end);
	if (ret == 0 && usw_ranges_cover(&target->registered, start, end))
		return true;
	if (ret == -ENOMEM || ret == -EAGAIN)
		return false;
	if (ret == -EBUSY)
		refuse(target, start, end); // under a userfaultfd of the program's own
	else
		target->eligible_stale = true;
	return false;
}

bool usw_eligible_may_leave(struct usw_target *target, struct usw_range mapping,
			    const struct page_region *regions, int count)
{
	if (!ensure_registered(target, mapping.start, mapping.end))
		return false;
	if (usw_target_owns(target, regions[0].start) &&
	    usw_target_owns(target, regions[count - 1].end - USW_PAGE_BYTES))
		return true;
	target->eligible_stale = true;
	return false;
}

/** What is not on the list of registered ranges of a span, from the first to the last mapping. */
static struct usw_range unregistered_part(const struct usw_target *target, struct usw_range span)
{
	const struct usw_ranges *mappings = &target->eligible.mappings;
	struct usw_range part = {UINT64_MAX, 0};

	for (uint32_t i = usw_ranges_find(mappings, span.start);
	     i < mappings->count && mappings->at[i].start < span.end; i++) {
		if (usw_ranges_cover(&target->registered, mappings->at[i].start,
				     mappings->at[i].end))
			continue;
		part.start = usw_min(part.start, mappings->at[i].start);
		part.end = mappings->at[i].end;
	}
	return part;
}

/**
 * Register what is not yet registered of a span with one call, since each call waits for the
 * program's mmap lock; one by one if the kernel refuses a part. False: look again.
 */
static bool register_span(struct usw_target *target, struct usw_range span)
{
	const struct usw_ranges *mappings = &target->eligible.mappings;
	struct usw_range left = unregistered_part(target, span);
	bool whole = true;

	int ret = left.start < left.end ? usw_target_register(target, left.start, left.end) : 0;
	if (ret == 0 || ret == -EAGAIN)
		return ret == 0;
	while (left.start < left.end) {
		uint32_t i = usw_ranges_find(mappings, left.start);

		if (i == mappings->count || mappings->at[i].start >= left.end)
			break;
		struct usw_range mapping = mappings->at[i];
		whole &= ensure_registered(target, mapping.start, mapping.end);
		left.start = mapping.end;
	}
	return whole;
}

void usw_eligible_register_all(struct usw_target *target)
{
	pthread_mutex_lock(&target->map_lock);
	if (!usw_target_is_evictable(target)) {
		pthread_mutex_unlock(&target->map_lock);
		return;
	}
	// Before the look: what changes behind it must count as a change the next time. Only here,
	// where all of it is registered; the sweep reads the mappings for itself.
	uint64_t data_pages = atomic_load(&target->data_pages);
	bool layout_changed = atomic_exchange(&target->layout_changed, false);
	if (!atomic_load(&target->events_pending) && !usw_target_arm(target) &&
	    !usw_eligible_read(target)) {
		target->scanned_data_pages = data_pages;
		layout_changed = false;
		for (uint32_t i = 0; i < target->eligible.spans.count; i++)
			layout_changed |= !register_span(target, target->eligible.spans.at[i]);
	}
	if (layout_changed)
		atomic_store(&target->layout_changed, true);
	pthread_mutex_unlock(&target->map_lock);
}

void usw_eligible_look(struct usw_target *target)
{
	target->eligible_stale = true;
	usw_eligible_read(target);
}
