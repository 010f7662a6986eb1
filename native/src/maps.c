// SPDX-License-Identifier: MIT

/**
 * @file
 * Reading a target's mappings. See maps.h.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "maps.h"

// --- Sorted ranges ------------------------------------------------------------------------------

static bool ranges_reserve(struct usw_ranges *ranges, uint32_t count)
{
	if (count <= ranges->capacity)
		return true;

	uint32_t capacity = ranges->capacity ? ranges->capacity * 2 : 64;
	if (capacity < count)
		capacity = count;
	struct usw_range *at = realloc(ranges->at, capacity * sizeof(*at));
	if (!at)
		return false;
	ranges->at = at;
	ranges->capacity = capacity;
	return true;
}

void usw_ranges_free(struct usw_ranges *ranges)
{
	free(ranges->at);
	*ranges = (struct usw_ranges){0};
}

bool usw_ranges_append(struct usw_ranges *ranges, uint64_t start, uint64_t end)
{
	struct usw_range *last = ranges->count ? &ranges->at[ranges->count - 1] : NULL;

	usw_assert(start < end && (!last || last->end <= start));
	if (last && last->end == start) {
		last->end = end;
		return true;
	}
	if (!ranges_reserve(ranges, ranges->count + 1))
		return false;
	ranges->at[ranges->count++] = (struct usw_range){start, end};
	return true;
}

uint32_t usw_ranges_find(const struct usw_ranges *ranges, uint64_t address)
{
	uint32_t low = 0;
	uint32_t high = ranges->count;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (ranges->at[middle].end > address)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

bool usw_ranges_add(struct usw_ranges *ranges, uint64_t start, uint64_t end)
{
	usw_assert(start < end);
	// First range that touches or follows, and the first that lies wholly behind.
	uint32_t first = start ? usw_ranges_find(ranges, start - 1) : 0;
	uint32_t last = first;

	while (last < ranges->count && ranges->at[last].start <= end) {
		start = usw_min(start, ranges->at[last].start);
		end = usw_max(end, ranges->at[last].end);
		last++;
	}
	if (first == last && !ranges_reserve(ranges, ranges->count + 1))
		return false;
	memmove(&ranges->at[first + 1], &ranges->at[last],
		(ranges->count - last) * sizeof(*ranges->at));
	ranges->count = ranges->count - (last - first) + 1;
	ranges->at[first] = (struct usw_range){start, end};
	return true;
}

bool usw_ranges_remove(struct usw_ranges *ranges, uint64_t start, uint64_t end)
{
	uint32_t i = usw_ranges_find(ranges, start);

	if (i == ranges->count)
		return true;
	if (ranges->at[i].start < start && ranges->at[i].end > end) {
		if (!ranges_reserve(ranges, ranges->count + 1))
			return false;
		memmove(&ranges->at[i + 1], &ranges->at[i],
			(ranges->count - i) * sizeof(*ranges->at));
		ranges->count++;
		ranges->at[i].end = start;
		ranges->at[i + 1].start = end;
		return true;
	}
	if (ranges->at[i].start < start)
		ranges->at[i++].end = start;

	uint32_t last = i;
	while (last < ranges->count && ranges->at[last].end <= end)
		last++;
	if (last < ranges->count && ranges->at[last].start < end)
		ranges->at[last].start = end;
	memmove(&ranges->at[i], &ranges->at[last], (ranges->count - last) * sizeof(*ranges->at));
	ranges->count -= last - i;
	return true;
}

bool usw_ranges_cover(const struct usw_ranges *ranges, uint64_t start, uint64_t end)
{
	uint32_t i = usw_ranges_find(ranges, start);

	return i < ranges->count && ranges->at[i].start <= start && ranges->at[i].end >= end;
}

// --- Mappings -----------------------------------------------------------------------------------

static enum usw_maps_kind classify(bool readable, bool writable, bool executable, bool shared,
				   uint64_t inode, const char *name)
{
	if (shared || inode)
		return USW_MAPS_FOREIGN;
	if (executable)
		return USW_MAPS_OTHER;
	// The main stack grows by faults of its own kind; vvar and friends are not memory.
	if (name[0] == '[' && strncmp(name, "[heap]", 6) != 0 && strncmp(name, "[anon:", 6) != 0)
		return USW_MAPS_OTHER;
	if (readable && writable)
		return USW_MAPS_ELIGIBLE;
	return readable || writable ? USW_MAPS_OTHER : USW_MAPS_RESERVE;
}

bool usw_maps_parse_line(const char *line, uint64_t *start, uint64_t *end,
			 enum usw_maps_kind *ret_kind)
{
	char permissions[5];
	unsigned long long from, to, inode;
	int name_at = 0;

	if (sscanf(line, "%llx-%llx %4s %*x %*x:%*x %llu%n", &from, &to, permissions, &inode,
		   &name_at) != 4 ||
	    strlen(permissions) != 4 || from >= to)
		return false;
	const char *name = line + name_at;
	name += strspn(name, " \t");
	*start = from;
	*end = to;
	*ret_kind = classify(permissions[0] == 'r', permissions[1] == 'w', permissions[2] == 'x',
			     permissions[3] != 'p', inode, name);
	return true;
}

/**
 * The name of an anonymous mapping; "" if it has none. Files are not asked: theirs cost a path
 * walk.
 */
static void query_name(int maps_fd, const struct procmap_query *found, char *name,
		       uint32_t name_bytes)
{
	struct procmap_query q = {
		.size = sizeof(q),
		.query_addr = found->vma_start,
		.vma_name_size = name_bytes,
		.vma_name_addr = (uintptr_t)name,
	};

	name[0] = '\0';
	// A name that does not fit is a program's own choice ("[anon:...]", up to 80 bytes).
	if (!found->inode && ioctl(maps_fd, PROCMAP_QUERY, &q) < 0)
		name[0] = '\0';
}

static enum usw_maps_kind classify_found(int maps_fd, const struct procmap_query *found)
{
	char name[32];

	query_name(maps_fd, found, name, sizeof(name));
	return classify(found->vma_flags & PROCMAP_QUERY_VMA_READABLE,
			found->vma_flags & PROCMAP_QUERY_VMA_WRITABLE,
			found->vma_flags & PROCMAP_QUERY_VMA_EXECUTABLE,
			found->vma_flags & PROCMAP_QUERY_VMA_SHARED, found->inode, name);
}

/** The mapping at or after address, through PROCMAP_QUERY. -ENOENT: there is none. */
static int query(int maps_fd, uint64_t address, struct procmap_query *ret)
{
	*ret = (struct procmap_query){
		.size = sizeof(*ret),
		.query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
		.query_addr = address,
	};
	return ioctl(maps_fd, PROCMAP_QUERY, ret) < 0 ? -errno : 0;
}

/** usw_maps_for_each() from the text, for kernels without PROCMAP_QUERY. */
static int read_by_text(int maps_fd, uint64_t address,
			int (*visit)(void *context, uint64_t start, uint64_t end,
				     enum usw_maps_kind kind),
			void *context)
{
	_cleanup_free_ char *text = malloc(USW_PAGE_BYTES + 1);
	size_t have = 0;
	off_t offset = 0;

	if (!text)
		return -ENOMEM;
	for (;;) {
		ssize_t got = pread(maps_fd, text + have, USW_PAGE_BYTES - have, offset);
		char *line = text;
		char *newline;

		if (got < 0)
			return -errno;
		if (got == 0)
			return 0;
		offset += got;
		have += (size_t)got;
		text[have] = '\0';
		while ((newline = strchr(line, '\n'))) {
			uint64_t start, end;
			enum usw_maps_kind kind;

			*newline = '\0';
			if (usw_maps_parse_line(line, &start, &end, &kind) && end > address) {
				int ret = visit(context, usw_max(start, address), end, kind);

				if (ret)
					return ret;
				address = end;
			}
			line = newline + 1;
		}
		have -= (size_t)(line - text);
		if (have == USW_PAGE_BYTES)
			return -EMSGSIZE;
		memmove(text, line, have);
	}
}

int usw_maps_for_each(int maps_fd, uint64_t address,
		      int (*visit)(void *context, uint64_t start, uint64_t end,
				   enum usw_maps_kind kind),
		      void *context)
{
	for (;;) {
		struct procmap_query found;
		int ret = query(maps_fd, address, &found);

		if (ret == -ENOTTY)
			return read_by_text(maps_fd, address, visit, context);
		if (ret)
			return ret == -ENOENT ? 0 : ret;
		// It may have been merged with the one before since that was read.
		ret = visit(context, usw_max(found.vma_start, address), found.vma_end,
			    classify_found(maps_fd, &found));
		if (ret)
			return ret;
		address = found.vma_end;
	}
}

/** Whether a mapping begins before an address and ends behind it. */
static bool query_across(int maps_fd, uint64_t address, struct procmap_query *ret)
{
	return query(maps_fd, address, ret) == 0 && ret->vma_start < address;
}

static bool is_registrable(int maps_fd, const struct procmap_query *found)
{
	enum usw_maps_kind kind = classify_found(maps_fd, found);

	return kind == USW_MAPS_ELIGIBLE || kind == USW_MAPS_RESERVE;
}

struct usw_range usw_maps_whole(int maps_fd, struct usw_range range)
{
	struct procmap_query found;

	if (query_across(maps_fd, range.start, &found))
		range.start = is_registrable(maps_fd, &found) ? found.vma_start : found.vma_end;
	if (query_across(maps_fd, range.end, &found))
		range.end = is_registrable(maps_fd, &found) ? found.vma_end : found.vma_start;
	return range;
}

/* Lowest address a program can have memory at (vm.mmap_min_addr). */
#define USW_ADDRESSES_START 0x10000u

struct reading {
	struct usw_maps *maps;
	uint64_t other_end; /* end of the last mapping that is not eligible */
	bool interrupted;   /* such a one was seen since the last one that is */
};

static bool add_range(struct usw_ranges *ranges, uint64_t start, uint64_t end)
{
	if (!ranges_reserve(ranges, ranges->count + 1))
		return false;
	ranges->at[ranges->count++] = (struct usw_range){start, end};
	return true;
}

/** A gap worth a stretch even if nothing is in it yet. */
#define USW_GAP_BYTES (1ull << 30)

/** A file's mapping begins: the last stretch goes on to here, or the gap before it is one. */
static bool end_stretch(struct reading *reading, uint64_t start)
{
	struct usw_ranges *stretches = &reading->maps->stretches;

	if (!reading->interrupted) {
		stretches->at[stretches->count - 1].end = start;
		return true;
	}
	return start - reading->other_end < USW_GAP_BYTES ||
	       add_range(stretches, reading->other_end, start);
}

static int visit_read(void *context, uint64_t start, uint64_t end, enum usw_maps_kind kind)
{
	struct reading *reading = context;
	struct usw_maps *maps = reading->maps;
	bool touches = maps->mappings.count &&
		       maps->mappings.at[maps->mappings.count - 1].end == start;

	if (kind == USW_MAPS_RESERVE && !touches)
		return 0; // it may be registered, as part of a span, and is not worth it alone
	if (kind != USW_MAPS_ELIGIBLE && kind != USW_MAPS_RESERVE) {
		// Not so below a stack: there must be room for it to grow.
		if (kind == USW_MAPS_FOREIGN && !end_stretch(reading, start))
			return -ENOMEM;
		reading->other_end = end;
		reading->interrupted = true;
		return 0;
	}
	if (!add_range(&maps->mappings, start, end))
		return -ENOMEM;
	if (maps->spans.count && !reading->interrupted) {
		maps->spans.at[maps->spans.count - 1].end = end;
		maps->stretches.at[maps->stretches.count - 1].end = end;
		return 0;
	}
	reading->interrupted = false;
	return add_range(&maps->spans, start, end) &&
			       add_range(&maps->stretches, reading->other_end, end)
		       ? 0
		       : -ENOMEM;
}

int usw_maps_read(int maps_fd, struct usw_maps *ret)
{
	struct reading reading = {
		.maps = ret, .other_end = USW_ADDRESSES_START, .interrupted = true};

	ret->mappings.count = ret->spans.count = ret->stretches.count = 0;
	return usw_maps_for_each(maps_fd, 0, visit_read, &reading);
}

void usw_maps_free(struct usw_maps *maps)
{
	usw_ranges_free(&maps->mappings);
	usw_ranges_free(&maps->spans);
	usw_ranges_free(&maps->stretches);
}

/** Find pages by the categories that `scan` names: number of regions or -errno. */
static int scan_pages(int pagemap_fd, struct pm_scan_arg scan, uint64_t start, uint64_t end,
		      struct page_region *regions, uint32_t capacity, uint64_t *ret_walk_end)
{
	scan.size = sizeof(scan);
	scan.start = start;
	scan.end = end;
	scan.vec = (uintptr_t)regions;
	scan.vec_len = capacity;

	int count = ioctl(pagemap_fd, PAGEMAP_SCAN, &scan);
	if (count < 0)
		return -errno;
	*ret_walk_end = scan.walk_end;
	return count;
}

int usw_maps_present(int pagemap_fd, uint64_t start, uint64_t end, struct page_region *regions,
		     uint32_t capacity, uint64_t *ret_walk_end)
{
	const struct pm_scan_arg present = {
		.category_inverted = PAGE_IS_PFNZERO | PAGE_IS_FILE,
		.category_mask = PAGE_IS_PFNZERO | PAGE_IS_FILE,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_HUGE | PAGE_IS_SWAPPED,
	};

	return scan_pages(pagemap_fd, present, start, end, regions, capacity, ret_walk_end);
}

int usw_maps_there(int pagemap_fd, uint64_t start, uint64_t end, struct page_region *regions,
		   uint32_t capacity, uint64_t *ret_walk_end)
{
	const struct pm_scan_arg there = {
		.category_inverted = PAGE_IS_PFNZERO,
		.category_mask = PAGE_IS_PFNZERO,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_PRESENT,
	};

	return scan_pages(pagemap_fd, there, start, end, regions, capacity, ret_walk_end);
}

int usw_maps_guards(int pagemap_fd, uint64_t start, uint64_t end, struct page_region *regions,
		    uint32_t capacity, uint64_t *ret_walk_end)
{
	const struct pm_scan_arg guards = {
		.category_mask = PAGE_IS_SWAPPED,
		.return_mask = PAGE_IS_SWAPPED,
	};

	return scan_pages(pagemap_fd, guards, start, end, regions, capacity, ret_walk_end);
}

int usw_maps_zeros(int pagemap_fd, uint64_t start, uint64_t end, struct page_region *regions,
		   uint32_t capacity, uint64_t *ret_walk_end)
{
	const struct pm_scan_arg zeros = {
		.category_mask = PAGE_IS_PFNZERO,
		.return_mask = PAGE_IS_PFNZERO,
	};

	return scan_pages(pagemap_fd, zeros, start, end, regions, capacity, ret_walk_end);
}

// --- What a fork leaves out ---------------------------------------------------------------------

void usw_maps_advised_free(struct usw_maps_advised *advised)
{
	usw_ranges_free(&advised->wiped);
	usw_ranges_free(&advised->not_copied);
}

/** A file, and how far it is read: its own place in it its target shares with us. */
struct reader {
	int fd;
	off_t offset;
};

static ssize_t read_on(void *cookie, char *buffer, size_t bytes)
{
	struct reader *reader = cookie;
	ssize_t got = pread(reader->fd, buffer, bytes, reader->offset);

	reader->offset += got > 0 ? got : 0;
	return got;
}

int usw_maps_advised(int smaps_fd, struct usw_maps_advised *ret)
{
	struct reader reader = {.fd = smaps_fd};

	*ret = (struct usw_maps_advised){0};
	FILE *stream = fopencookie(&reader, "r", (cookie_io_functions_t){.read = read_on});
	if (!stream)
		return -ENOMEM;

	char line[512];
	uint64_t start = 0, end = 0;
	bool fits = true;
	while (fits && fgets(line, sizeof(line), stream)) {
		uint64_t from, to;
		enum usw_maps_kind kind;

		if (strncmp(line, "VmFlags:", 8) == 0) {
			if (end && strstr(line, " wf"))
				fits = usw_ranges_add(&ret->wiped, start, end);
			if (end && strstr(line, " dc"))
				fits &= usw_ranges_add(&ret->not_copied, start, end);
		} else if (usw_maps_parse_line(line, &from, &to, &kind)) {
			start = from;
			end = to;
		}
	}
	// An address space that is gone reads as an error or as nothing at all.
	bool failed = ferror(stream) || !end;
	fclose(stream);
	if (failed)
		return -ESRCH;
	return fits ? 0 : -ENOMEM;
}
