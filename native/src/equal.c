// SPDX-License-Identifier: MIT

/**
 * @file
 * The table of hashes, and the comparison. See equal.h.
 */

#include <string.h>

#include "equal.h"

#define USW_LINE_IDS 256u
/* No smaller: one page of memory. */
#define USW_LINES_MIN 64u
/* The front entries of a line: found before, or an anchor. */
#define USW_LINE_LASTING 4u
#define USW_LINE_ENTRIES 8u
/* A run goes on behind so many pages that were changed since it was copied. */
#define USW_RUN_MISSES_MAX 16u

struct entry {
	uint32_t id; /* USW_VSWAP_NONE: empty */
	uint32_t tag;
};

/** Two queues, latest first, that forget at their end. */
struct line {
	struct entry at[USW_LINE_ENTRIES];
};

_Static_assert(sizeof(struct line) == 64, "one look is one line of the cache");
_Static_assert(sizeof(struct line) * USW_LINES_MIN == USW_PAGE_BYTES, "sizes are whole pages");

static uint64_t table_bytes(uint32_t line_count)
{
	return (uint64_t)line_count * sizeof(struct line);
}

int usw_equal_create(struct usw_equal *equal, struct usw_vswap *vswap,
		     const struct usw_standby_space *standbys)
{
	uint32_t most = USW_LINES_MIN;

	while (most < vswap->capacity / USW_LINE_IDS)
		most *= 2;
	*equal = (struct usw_equal){.vswap = vswap, .standbys = standbys, .line_count_max = most};
	return usw_space_create(&equal->space, "uffdswap-equal", table_bytes(most));
}

void usw_equal_destroy(struct usw_equal *equal)
{
	usw_space_destroy(&equal->space);
}

static struct line *line_at(const struct usw_equal *equal, uint32_t i)
{
	return (struct line *)equal->space.base + i;
}

/** Twice the lines. Which of both halves an entry belongs to is not known: it goes into both. */
static void grow(struct usw_equal *equal)
{
	if (equal->line_count == 0) {
		equal->line_count = USW_LINES_MIN;
		return;
	}
	memcpy(line_at(equal, equal->line_count), line_at(equal, 0),
	       table_bytes(equal->line_count));
	equal->line_count *= 2;
}

/** Half of the lines, or none. What was noted in the others is forgotten. */
static void shrink(struct usw_equal *equal)
{
	uint32_t left = equal->line_count > USW_LINES_MIN ? equal->line_count / 2 : 0;

	usw_space_punch(&equal->space, table_bytes(left), table_bytes(equal->line_count - left));
	equal->line_count = left;
}

void usw_equal_fit(struct usw_equal *equal)
{
	uint64_t live = atomic_load_explicit(&equal->vswap->live_count, memory_order_relaxed);
	uint64_t wanted = live / USW_LINE_IDS;

	while (live && equal->line_count < equal->line_count_max &&
	       (equal->line_count == 0 || wanted >= 2 * (uint64_t)equal->line_count))
		grow(equal);
	// Late, so that a number of pages that goes up and down does not make it forget.
	while (equal->line_count &&
	       (live == 0 || (equal->line_count > USW_LINES_MIN && wanted < equal->line_count / 4)))
		shrink(equal);
}

static struct line *line_of(const struct usw_equal *equal, uint64_t hash)
{
	return line_at(equal, (uint32_t)hash & (equal->line_count - 1));
}

static uint32_t tag_of(uint64_t hash)
{
	return (uint32_t)(hash >> 32);
}

/** Chosen by the content, so that it is the same page in each copy of a run. */
static bool is_anchor(uint64_t hash)
{
	return tag_of(hash) % 128 == 0;
}

/** The entry of a hash in its line, or NULL. */
static struct entry *find_entry(struct line *line, uint64_t hash)
{
	for (uint32_t i = 0; i < USW_LINE_ENTRIES; i++)
		if (line->at[i].id && line->at[i].tag == tag_of(hash))
			return &line->at[i];
	return NULL;
}

/** Put an entry at the front of a queue, from where `hole` was, or over what is last. */
static void put_first(struct entry *first, struct entry *hole, struct entry entry)
{
	memmove(first + 1, first, (size_t)(hole - first) * sizeof(*first));
	*first = entry;
}

void usw_equal_note(struct usw_equal *equal, uint32_t id, uint64_t hash)
{
	if (!equal->line_count)
		grow(equal);

	struct line *line = line_of(equal, hash);
	struct entry *known = find_entry(line, hash);
	struct entry entry = {.id = id, .tag = tag_of(hash)};
	struct entry *first = is_anchor(hash) ? line->at : line->at + USW_LINE_LASTING;

	// What was noted under this hash is gone, on a disk, or has as many shares as it may.
	if (known)
		*known = entry;
	else
		put_first(first, first + USW_LINE_LASTING - 1, entry);
}

/** True if the content behind a word is in memory, so that it can be compared at once. */
static bool is_in_memory(const struct usw_equal *equal, uint64_t word)
{
	const struct usw_segments *segments = equal->vswap->segments;
	uint32_t group = usw_place_group(usw_word_place(word));

	if (usw_word_backend(word) == USW_BACKEND_MEMORY)
		return true;
	if (usw_word_backend(word) != USW_BACKEND_OBJECT)
		return false; // free, or no content of its own: its hash may be a word
	uint64_t where = atomic_load_explicit(&usw_segments_header(segments, group)->where,
					      memory_order_relaxed);
	return usw_where_tier(where) == USW_TIER_RAM;
}

static bool take(const struct usw_equal *equal, uint32_t id, uint64_t hash)
{
	return is_in_memory(equal, usw_vswap_peek(equal->vswap, id)) &&
	       usw_vswap_get_equal(equal->vswap, id, hash, USW_EQUAL_SHARES_MAX);
}

static uint32_t look_up(struct usw_equal *equal, uint64_t hash)
{
	if (!equal->line_count)
		return USW_VSWAP_NONE;

	struct line *line = line_of(equal, hash);
	struct entry *found = find_entry(line, hash);
	if (!found || !take(equal, found->id, hash))
		return USW_VSWAP_NONE;
	struct entry *last = line->at + USW_LINE_LASTING - 1;
	struct entry entry = *found;
	if (found > last) {
		*found = *last; // they change places
		found = last;
	}
	put_first(line->at, found, entry);
	return entry.id;
}

uint32_t usw_equal_find(struct usw_equal *equal, struct usw_equal_run *run, uint64_t hash)
{
	uint32_t id = run->next_id;

	if (id == USW_VSWAP_NONE || !take(equal, id, hash))
		id = look_up(equal, hash);
	if (id != USW_VSWAP_NONE)
		*run = (struct usw_equal_run){.next_id = id + 1};
	else if (run->next_id && ++run->misses <= USW_RUN_MISSES_MAX)
		run->next_id++;
	else
		*run = (struct usw_equal_run){0};
	return id;
}

/**
 * Nothing of it can go away while we look. The caller's reference keeps the ID, and with it object
 * or slot, whatever other holders do. Content is moved by the owner alone, who is here: it drains
 * slots, empties segments, publishes where a segment is and gives the RAM that it had to others. And
 * content is never rewritten: a program that writes to its page after a fault leaves with another
 * ID. So what is compared is what the ID will hold for as long as it lives.
 */
bool usw_equal_is(const struct usw_equal *equal, uint32_t id, const void *page)
{
	uint64_t word = usw_vswap_word(equal->vswap, id);
	uint32_t group = usw_place_group(usw_word_place(word));
	uint32_t index = usw_place_index(usw_word_place(word));
	char content[USW_PAGE_BYTES] __attribute__((aligned(8)));
	struct usw_object object;

	if (!is_in_memory(equal, word))
		return false;
	if (usw_word_backend(word) == USW_BACKEND_MEMORY)
		return memcmp(usw_standby_page(equal->standbys, group, index), page,
			      USW_PAGE_BYTES) == 0;
	return usw_segments_find(equal->vswap->segments, group, index, &object) &&
	       usw_codec_decompress(object.codec, object.bytes, object.length_bytes, content) ==
		       0 &&
	       memcmp(content, page, USW_PAGE_BYTES) == 0;
}

uint64_t usw_equal_held_bytes(const struct usw_equal *equal)
{
	return table_bytes(equal->line_count);
}
