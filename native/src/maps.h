// SPDX-License-Identifier: MIT

/**
 * @file
 * Which memory of a target may be managed, and which of its pages are there.
 *
 * Eligible is every private, anonymous, writable, non-executable mapping that is not huge-TLB and
 * not the main stack; an inaccessible anonymous mapping right behind an eligible one counts as its
 * reserve (malloc arenas grow into one by mprotect, which raises no event). Memory that is locked,
 * or under a userfaultfd of the program's own, shows only when the kernel refuses it later.
 *
 * All of it reads files the target opened on itself and passed on. Stateless; any thread.
 */

#ifndef USW_MAPS_H
#define USW_MAPS_H

#include "base.h"
#include "uffd_abi.h"

struct usw_range {
	uint64_t start;
	uint64_t end;
};

/** A growing array of ranges, sorted by address. */
struct usw_ranges {
	struct usw_range *at;
	uint32_t count;
	uint32_t capacity;
};

/** Append a range, merging it with the last one if they touch. False: no memory. */
bool usw_ranges_append(struct usw_ranges *ranges, uint64_t start, uint64_t end);
/** Add a range anywhere. False: no memory. */
bool usw_ranges_add(struct usw_ranges *ranges, uint64_t start, uint64_t end);
/** Remove what lies in [start, end). False: no memory (splitting one needs a place). */
bool usw_ranges_remove(struct usw_ranges *ranges, uint64_t start, uint64_t end);
/** Index of the first range that ends behind address; count if there is none. */
uint32_t usw_ranges_find(const struct usw_ranges *ranges, uint64_t address);
bool usw_ranges_cover(const struct usw_ranges *ranges, uint64_t start, uint64_t end);
void usw_ranges_free(struct usw_ranges *ranges);

enum usw_maps_kind {
	USW_MAPS_FOREIGN = 0, /* a file, or shared: never ours */
	USW_MAPS_OTHER = 3,   /* private, and not eligible as it is now: read-only, a stack, code */
	USW_MAPS_ELIGIBLE = 1,
	USW_MAPS_RESERVE = 2, /* inaccessible; eligible if it follows an eligible one */
};

/**
 * Call `visit` for every mapping that ends behind `address`, in order and from `address` on, until
 * it returns something else than 0, which is returned. None is told twice, though they may change.
 * Otherwise 0 or -errno. About half a microsecond a mapping.
 */
int usw_maps_for_each(int maps_fd, uint64_t address,
		      int (*visit)(void *context, uint64_t start, uint64_t end,
				   enum usw_maps_kind kind),
		      void *context);

/**
 * A range that cuts no mapping in two, as registering a part of one does: the kernel then refuses to
 * move what is one mapping to the program. What may be registered is taken in whole, anything else
 * left out, so that the range may become empty. A microsecond; before Linux 6.11 it stays as it is.
 */
struct usw_range usw_maps_whole(int maps_fd, struct usw_range range);

/** The eligible mappings of a target. */
struct usw_maps {
	struct usw_ranges mappings; /* neighbours are not merged: each is one kernel mapping */
	struct usw_ranges spans; /* runs of mappings between which there is no other, only gaps */
	struct usw_ranges
		stretches; /* spans with the gaps around them, up to the next other mapping */
};

/**
 * Read the mappings of a target (emptied first). Returns 0 or -errno; 0 and nothing if it is gone.
 */
int usw_maps_read(int maps_fd, struct usw_maps *ret);
void usw_maps_free(struct usw_maps *maps);

/**
 * Present private pages in [start, end), and what usw_maps_guards() finds: fills up to `capacity`
 * regions and stores where the walk stopped. A region's categories have PAGE_IS_HUGE if its pages
 * are mapped huge, and PAGE_IS_SWAPPED if they are not present. Returns the number of regions or
 * -errno. About 5 ns a page.
 */
int usw_maps_present(int pagemap_fd, uint64_t start, uint64_t end, struct page_region *regions,
		     uint32_t capacity, uint64_t *ret_walk_end);

/**
 * Pages in [start, end) that hold something, be it elsewhere for a moment: in the kernel's own
 * swap, or on the move. Same arguments and result.
 */
int usw_maps_there(int pagemap_fd, uint64_t start, uint64_t end, struct page_region *regions,
		   uint32_t capacity, uint64_t *ret_walk_end);

/**
 * Pages in [start, end) that hold something and are not present: guards (MADV_GUARD_INSTALL), and
 * what only newer kernels tell from them (PAGE_IS_GUARD), pages in the kernel's own swap or on the
 * move. Nothing is to be copied to any of them. Same arguments and result.
 */
int usw_maps_guards(int pagemap_fd, uint64_t start, uint64_t end, struct page_region *regions,
		    uint32_t capacity, uint64_t *ret_walk_end);

/**
 * Mapped zero pages in [start, end): memory that was read and never written. Same arguments and
 * result.
 */
int usw_maps_zeros(int pagemap_fd, uint64_t start, uint64_t end, struct page_region *regions,
		   uint32_t capacity, uint64_t *ret_walk_end);

/** Mappings for which the program has said how a fork treats them. */
struct usw_maps_advised {
	struct usw_ranges wiped;      /* MADV_WIPEONFORK: zeros in a child */
	struct usw_ranges not_copied; /* MADV_DONTFORK: not in a child */
};

/** Reads all of smaps: 3 ms a GiB resident. Returns 0 or -errno; usw_maps_advised_free() afterwards. */
int usw_maps_advised(int smaps_fd, struct usw_maps_advised *ret);
void usw_maps_advised_free(struct usw_maps_advised *advised);

/** Parse one line of maps text; false if it is not one. For kernels without PROCMAP_QUERY. */
bool usw_maps_parse_line(const char *line, uint64_t *start, uint64_t *end,
			 enum usw_maps_kind *ret_kind);

#endif /* USW_MAPS_H */
