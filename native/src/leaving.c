// SPDX-License-Identifier: MIT

/**
 * @file
 * Pages on their way out by the program's own wish. See leaving.h.
 */

#include "leaving.h"

#define USW_SCAN_REGIONS 64u
/* A look costs 5 ns a page on the lists: at most this share of the time goes into it. */
#define USW_LOOK_NS_MIN 1000000u
#define USW_LOOK_SHARE 20u

void usw_leaving_init(struct usw_leaving *leaving)
{
	*leaving = (struct usw_leaving){0};
	pthread_mutex_init(&leaving->lock, NULL);
}

void usw_leaving_deinit(struct usw_leaving *leaving)
{
	usw_ranges_free(&leaving->young);
	usw_ranges_free(&leaving->old);
	pthread_mutex_destroy(&leaving->lock);
}

/** Add what is present of [start, end); all of it if that cannot be found out. False: no memory. */
static bool add_present(struct usw_ranges *ranges, int pagemap_fd, uint64_t start, uint64_t end)
{
	struct page_region regions[USW_SCAN_REGIONS];

	while (start < end) {
		uint64_t walk_end = end;
		int count = usw_maps_there(pagemap_fd, start, end, regions, USW_SCAN_REGIONS,
					   &walk_end);

		if (count < 0 || walk_end <= start)
			return usw_ranges_add(ranges, start, end);
		for (int i = 0; i < count; i++)
			if (!usw_ranges_add(ranges, regions[i].start, regions[i].end))
				return false;
		start = walk_end;
	}
	return true;
}

bool usw_leaving_note(struct usw_leaving *leaving, int pagemap_fd, uint64_t start, uint64_t end)
{
	pthread_mutex_lock(&leaving->lock);
	bool fits = add_present(&leaving->young, pagemap_fd, start, end);
	atomic_store(&leaving->any, leaving->young.count || leaving->old.count);
	pthread_mutex_unlock(&leaving->lock);
	return fits;
}

void usw_leaving_returned(struct usw_leaving *leaving, uint64_t start, uint64_t end)
{
	if (usw_likely(!atomic_load_explicit(&leaving->any, memory_order_relaxed)))
		return;
	pthread_mutex_lock(&leaving->lock);
	// Without memory to split a range the page stays listed, and stays in memory for a while.
	(void)usw_ranges_remove(&leaving->young, start, end);
	(void)usw_ranges_remove(&leaving->old, start, end);
	pthread_mutex_unlock(&leaving->lock);
}

/** Keep of a list what is still present. */
static void keep_present(struct usw_ranges *ranges, int pagemap_fd)
{
	struct usw_ranges present = {0};
	bool fits = true;

	for (uint32_t i = 0; fits && i < ranges->count; i++)
		fits = add_present(&present, pagemap_fd, ranges->at[i].start, ranges->at[i].end);
	if (!fits) {
		usw_ranges_free(&present);
		return;
	}
	usw_ranges_free(ranges);
	*ranges = present;
}

void usw_leaving_settle(struct usw_leaving *leaving, int pagemap_fd, uint64_t now_ns)
{
	if (usw_likely(!atomic_load_explicit(&leaving->any, memory_order_relaxed)) ||
	    now_ns < leaving->due_ns)
		return;
	uint64_t start_ns = usw_now_ns();
	pthread_mutex_lock(&leaving->lock);
	leaving->looks++;
	if (now_ns - leaving->turned_ns > USW_LEAVING_NS && leaving->looks > USW_LEAVING_LOOKS) {
		usw_ranges_free(&leaving->old);
		leaving->old = leaving->young;
		leaving->young = (struct usw_ranges){0};
		leaving->turned_ns = now_ns;
		leaving->looks = 0;
	}
	keep_present(&leaving->young, pagemap_fd);
	keep_present(&leaving->old, pagemap_fd);
	atomic_store(&leaving->any, leaving->young.count || leaving->old.count);
	pthread_mutex_unlock(&leaving->lock);
	uint64_t took_ns = usw_now_ns() - start_ns;
	leaving->due_ns = now_ns + usw_max(took_ns * USW_LOOK_SHARE, USW_LOOK_NS_MIN);
}

static bool overlaps(const struct usw_ranges *ranges, uint64_t start, uint64_t end)
{
	uint32_t i = usw_ranges_find(ranges, start);

	return i < ranges->count && ranges->at[i].start < end;
}

bool usw_leaving_has(struct usw_leaving *leaving, uint64_t start, uint64_t end)
{
	if (usw_likely(!atomic_load_explicit(&leaving->any, memory_order_relaxed)))
		return false;
	pthread_mutex_lock(&leaving->lock);
	bool has = overlaps(&leaving->young, start, end) || overlaps(&leaving->old, start, end);
	pthread_mutex_unlock(&leaving->lock);
	return has;
}
