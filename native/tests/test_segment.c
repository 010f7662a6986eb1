// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: an object is found as it was appended until it is released, every byte and every segment is
 * accounted for, and segments come back when nothing lives in them.
 * Method: known objects at the limits of what an entry can name; the kernel's own count of memory;
 * releases from several threads against an owner that appends and reaps.
 */

#include <pthread.h>
#include <sched.h>

#include "check.h"

#define SMALL_CAPACITY 6u /* segments 1 .. 5 */

static struct usw_segments create(uint32_t capacity)
{
	struct usw_segments segments;

	CHECK_EQ(usw_segments_create(&segments, capacity), 0);
	return segments;
}

/** Bytes that follow from the owner. */
static void fill_object(unsigned char *bytes, uint32_t length, uint32_t owner)
{
	for (uint32_t i = 0; i < length; i++)
		bytes[i] = (unsigned char)(owner * 31 + i * 7 + (i >> 8));
}

static uint64_t append(struct usw_segments *segments, uint32_t owner, uint32_t length,
		       enum usw_codec codec)
{
	unsigned char bytes[USW_PAGE_BYTES];
	uint64_t place = 0;

	fill_object(bytes, length, owner);
	CHECK_EQ(usw_segments_append(segments, USW_LOG_LOOSE, owner, bytes, length, codec, &place),
		 0);
	return place;
}

static void check_found(const struct usw_segments *segments, uint64_t place, uint32_t owner,
			uint32_t length, enum usw_codec codec)
{
	unsigned char bytes[USW_PAGE_BYTES];
	struct usw_object object;

	CHECK(usw_segments_find(segments, usw_place_group(place), usw_place_index(place), &object));
	CHECK_EQ(object.length_bytes, length);
	CHECK_EQ(object.codec, codec);
	fill_object(bytes, length, owner);
	CHECK(memcmp(object.bytes, bytes, length) == 0);
	CHECK_EQ(usw_segments_owner(segments, usw_place_group(place), usw_place_index(place)),
		 owner);
}

static void release(struct usw_segments *segments, uint64_t place)
{
	usw_segments_release(segments, usw_place_group(place), usw_place_index(place));
}

/** What the segments say they hold is what the kernel says. */
static void check_held(const struct usw_segments *segments)
{
	usw_segments_check(segments);
	CHECK_EQ(segments->used_bytes, usw_space_held_bytes(&segments->data));
	CHECK_EQ(segments->table_bytes, usw_space_held_bytes(&segments->tables));
	CHECK_EQ(usw_segments_metadata_bytes(segments),
		 usw_space_held_bytes(&segments->tables) +
			 usw_space_held_bytes(&segments->headers));
}

static void test_objects_of_every_length(void)
{
	struct usw_segments segments = create(32);
	static uint64_t places[USW_PAGE_BYTES + 1];

	// Nothing was ever opened: only the table of segments may cost.
	CHECK_EQ(segments.used_bytes + segments.table_bytes, 0);
	for (uint32_t length = 1; length <= USW_PAGE_BYTES; length++) {
		// The highest owner too: IDs have 32 bits.
		places[length] = append(&segments, UINT32_MAX - length, length, length & 1);
		check_found(&segments, places[length], UINT32_MAX - length, length, length & 1);
	}
	check_held(&segments);
	for (uint32_t length = 1; length <= USW_PAGE_BYTES; length++)
		check_found(&segments, places[length], UINT32_MAX - length, length, length & 1);
	CHECK_EQ(segments.live_count, USW_PAGE_BYTES);
	for (uint32_t length = 1; length <= USW_PAGE_BYTES; length++)
		release(&segments, places[length]);
	CHECK_EQ(segments.live_count, 0);
	CHECK_EQ(segments.live_bytes, 0);
	check_held(&segments);
	usw_segments_reap(&segments);
	// What stays when nothing lives is the open segment, and that of the last, which are whole pages.
	CHECK(segments.open[USW_LOG_LOOSE] && segments.open[USW_LOG_WHOLE]);
	CHECK_EQ(segments.used_segments, 2);
	CHECK_EQ(usw_segments_garbage_bytes(&segments), segments.used_bytes);
	check_held(&segments);
	usw_segments_destroy(&segments);
}

/** A segment ends at its last byte, and at its last entry, not one before or after. */
static void test_segments_are_filled_up(void)
{
	struct usw_segments segments = create(SMALL_CAPACITY);
	uint64_t place = 0;

	for (uint32_t i = 0; i < USW_SEGMENT_BYTES / USW_PAGE_BYTES; i++) {
		place = append(&segments, i + 1, USW_PAGE_BYTES, USW_CODEC_STORED);
		CHECK_EQ(usw_place_group(place), 1);
		CHECK_EQ(usw_place_index(place), i);
	}
	check_found(&segments, place, USW_SEGMENT_BYTES / USW_PAGE_BYTES, USW_PAGE_BYTES,
		    USW_CODEC_STORED);
	place = append(&segments, 1000, 1, USW_CODEC_LZ4);
	CHECK_EQ(usw_place_group(place), 2);
	CHECK_EQ(usw_place_index(place), 0);

	for (uint32_t i = 1; i < USW_SEGMENT_OBJECTS; i++) {
		place = append(&segments, i + 1000, 9, USW_CODEC_LZ4);
		CHECK_EQ(usw_place_group(place), 2);
		CHECK_EQ(usw_place_index(place), i);
	}
	place = append(&segments, 5000, 9, USW_CODEC_LZ4);
	CHECK_EQ(usw_place_group(place), 3);
	check_found(&segments, usw_place(2, USW_SEGMENT_OBJECTS - 1),
		    1000 + USW_SEGMENT_OBJECTS - 1, 9, USW_CODEC_LZ4);
	check_held(&segments);
	usw_segments_destroy(&segments);
}

/** Without a segment an object is refused and nothing else changes; with one it goes on. */
static void test_segments_run_out(void)
{
	struct usw_segments segments = create(3);
	uint64_t places[2 * USW_SEGMENT_BYTES / USW_PAGE_BYTES];
	uint32_t count = 0;
	unsigned char page[USW_PAGE_BYTES] = {0};
	uint64_t place = 77;

	while (count < sizeof(places) / sizeof(places[0])) {
		places[count] = append(&segments, count + 1, USW_PAGE_BYTES, USW_CODEC_STORED);
		count++;
	}
	for (unsigned int round = 0; round < 3; round++) {
		CHECK_EQ(usw_segments_append(&segments, USW_LOG_LOOSE, 9999, page, 1, USW_CODEC_LZ4,
					     &place),
			 -ENOSPC);
		CHECK_EQ(place, 77);
		check_held(&segments);
		check_found(&segments, places[0], 1, USW_PAGE_BYTES, USW_CODEC_STORED);
	}
	for (uint32_t i = count / 2; i < count; i++)
		release(&segments, places[i]);
	usw_segments_reap(&segments);
	check_held(&segments);
	place = append(&segments, 9999, USW_PAGE_BYTES, USW_CODEC_STORED);
	CHECK_EQ(usw_place_group(place), 2); // used again, from its start
	CHECK_EQ(usw_place_index(place), 0);
	check_found(&segments, place, 9999, USW_PAGE_BYTES, USW_CODEC_STORED);
	check_found(&segments, places[0], 1, USW_PAGE_BYTES, USW_CODEC_STORED);
	usw_segments_destroy(&segments);
}

static void test_nonsense_is_not_found(void)
{
	struct usw_segments segments = create(SMALL_CAPACITY);
	uint64_t place = append(&segments, 1, 100, USW_CODEC_LZ4);
	struct usw_object object;

	CHECK(!usw_segments_find(&segments, 0, 0, &object));
	CHECK(!usw_segments_find(&segments, SMALL_CAPACITY, 0, &object));
	CHECK(!usw_segments_find(&segments, 0xffffff, 0, &object));
	CHECK(!usw_segments_find(&segments, 1, 1, &object));
	CHECK(!usw_segments_find(&segments, 1, USW_SEGMENT_OBJECTS, &object));
	CHECK(!usw_segments_find(&segments, 1, 0xffff, &object));
	CHECK(!usw_segments_find(&segments, SMALL_CAPACITY - 1, 0, &object));
	// An entry that says more than a segment holds, as a reader in a race might see it.
	_Atomic uint32_t *offset_bytes = (_Atomic uint32_t *)segments.tables.base;
	CHECK_EQ(*offset_bytes, 0);
	*offset_bytes = USW_SEGMENT_BYTES - 99;
	CHECK(!usw_segments_find(&segments, 1, 0, &object));
	*offset_bytes = UINT32_MAX;
	CHECK(!usw_segments_find(&segments, 1, 0, &object));
	*offset_bytes = 8;
	CHECK(usw_segments_find(&segments, 1, 0, &object));
	// A table of another life of the segment, before it was one of whole pages.
	atomic_store(&usw_segments_header(&segments, 1)->is_whole, true);
	CHECK(!usw_segments_find(&segments, 1, 0, &object));
	atomic_store(&usw_segments_header(&segments, 1)->is_whole, false);
	*offset_bytes = 0;
	CHECK(usw_segments_find(&segments, 1, 0, &object));
	release(&segments, place);
	CHECK(!usw_segments_find(&segments, 1, 0, &object));
	CHECK_EQ(usw_segments_owner(&segments, 1, 0), 0);
	CHECK_EQ(usw_segments_owner(&segments, 1, USW_SEGMENT_OBJECTS), 0);
	usw_segments_destroy(&segments);
}

static void test_contradictions_abort(void)
{
	struct usw_segments segments = create(SMALL_CAPACITY);
	unsigned char page[USW_PAGE_BYTES] = {0};
	uint64_t place = append(&segments, 1, 100, USW_CODEC_LZ4);

	CHECK_ABORTS(
		usw_segments_append(&segments, USW_LOG_LOOSE, 0, page, 1, USW_CODEC_LZ4, &place));
	CHECK_ABORTS(
		usw_segments_append(&segments, USW_LOG_LOOSE, 1, page, 0, USW_CODEC_LZ4, &place));
	CHECK_ABORTS(usw_segments_append(&segments, USW_LOG_LOOSE, 1, page, USW_PAGE_BYTES + 1,
					 USW_CODEC_STORED, &place));
	CHECK_ABORTS(usw_segments_release(&segments, 0, 0));
	CHECK_ABORTS(usw_segments_release(&segments, SMALL_CAPACITY, 0));
	CHECK_ABORTS(usw_segments_release(&segments, 1, 1));
	CHECK_ABORTS(usw_segments_release(&segments, 1, USW_SEGMENT_OBJECTS));
	usw_segments_check(&segments);
	CHECK_ABORTS({
		segments.live_bytes++;
		usw_segments_check(&segments);
	});
	CHECK_ABORTS({
		release(&segments, place);
		release(&segments, place);
	});
	usw_segments_destroy(&segments);
}

/** Fill whole segments with objects of one length and close them; return the places. */
static void fill_segments(struct usw_segments *segments, uint32_t length, uint32_t count,
			  uint64_t *places)
{
	for (uint32_t i = 0; i < count; i++)
		places[i] = append(segments, i + 1, length, USW_CODEC_LZ4);
}

static void test_the_emptiest_is_found(void)
{
	struct usw_segments segments = create(SMALL_CAPACITY);
	static uint64_t places[4 * 256];

	CHECK_EQ(usw_segments_emptiest(&segments), 0);
	fill_segments(&segments, USW_PAGE_BYTES, 3 * 256 + 1,
		      places); // 1 to 3 are closed, 4 is open
	CHECK_EQ(usw_segments_emptiest(&segments), 0);

	for (uint32_t i = 0; i < 64; i++) // a quarter less one byte more than is needed
		release(&segments, places[256 + i]);
	CHECK_EQ(usw_segments_emptiest(&segments), 0);
	release(&segments, places[256 + 64]);
	CHECK_EQ(usw_segments_emptiest(&segments), 2);
	for (uint32_t i = 0; i < 100; i++)
		release(&segments, places[512 + i]);
	CHECK_EQ(usw_segments_emptiest(&segments), 3);
	release(&segments, places[3 * 256]); // the open one is empty, and stays out of it
	CHECK_EQ(usw_segments_emptiest(&segments), 3);
	CHECK_EQ(usw_segments_garbage_bytes(&segments), (65 + 100 + 1) * USW_PAGE_BYTES);
	check_held(&segments);
	usw_segments_destroy(&segments);
}

/** Small objects end a segment by their number. Full of live ones, there is nothing to win. */
static void test_a_segment_full_of_small_objects_is_not_garbage(void)
{
	struct usw_segments segments = create(SMALL_CAPACITY);
	static uint64_t places[USW_SEGMENT_OBJECTS + 1];

	fill_segments(&segments, 32, USW_SEGMENT_OBJECTS + 1, places);
	CHECK_EQ(usw_segments_emptiest(&segments), 0);
	for (uint32_t i = 0; i < USW_SEGMENT_OBJECTS / 4; i++)
		release(&segments, places[i]);
	CHECK_EQ(usw_segments_emptiest(&segments), 0);
	for (uint32_t i = USW_SEGMENT_OBJECTS / 4; i < USW_SEGMENT_OBJECTS / 4 + 2; i++)
		release(&segments, places[i]);
	CHECK_EQ(usw_segments_emptiest(&segments), 1);
	usw_segments_destroy(&segments);
}

/** Tables of several segments share pages, and what one leaves behind is used by the next. */
static void test_tables_share_pages(void)
{
	enum { SEGMENTS = 10, OBJECTS = 256 }; // two chunks each, five to a page
	struct usw_segments segments = create(SEGMENTS + 4);
	static uint64_t places[(SEGMENTS + 1) * OBJECTS];

	fill_segments(&segments, USW_PAGE_BYTES, SEGMENTS * OBJECTS, places);
	CHECK_EQ(segments.table_bytes, SEGMENTS * 2 / 5 * USW_PAGE_BYTES);
	// Every other one goes. No page of tables is empty, so none is given back.
	for (uint32_t i = 0; i < SEGMENTS * OBJECTS; i++)
		if (i / OBJECTS % 2 == 0)
			release(&segments, places[i]);
	usw_segments_reap(&segments);
	check_held(&segments);
	CHECK_EQ(segments.table_bytes, SEGMENTS * 2 / 5 * USW_PAGE_BYTES);
	for (uint32_t i = 0; i < SEGMENTS * OBJECTS; i++)
		if (i / OBJECTS % 2 == 0)
			places[i] = append(&segments, i + 1, USW_PAGE_BYTES, USW_CODEC_LZ4);
	CHECK_EQ(segments.table_bytes, SEGMENTS * 2 / 5 * USW_PAGE_BYTES);
	for (uint32_t i = 0; i < SEGMENTS * OBJECTS; i++)
		check_found(&segments, places[i], i + 1, USW_PAGE_BYTES, USW_CODEC_LZ4);
	check_held(&segments);

	for (uint32_t i = 0; i < SEGMENTS * OBJECTS; i++)
		release(&segments, places[i]);
	usw_segments_reap(&segments);
	CHECK_THAT(segments.table_bytes, <=, USW_PAGE_BYTES); // of the open one
	check_held(&segments);
	usw_segments_destroy(&segments);
}

static void test_reap_takes_closed_and_empty_ones_only(void)
{
	struct usw_segments segments = create(SMALL_CAPACITY);
	static uint64_t places[3 * 256];

	fill_segments(&segments, USW_PAGE_BYTES, 2 * 256 + 1, places);
	for (uint32_t i = 1; i < 256; i++)
		release(&segments, places[i]);
	usw_segments_reap(&segments);
	CHECK_EQ(segments.used_segments, 3); // one object keeps a segment
	check_found(&segments, places[0], 1, USW_PAGE_BYTES, USW_CODEC_LZ4);
	release(&segments, places[0]);
	release(&segments, places[512]); // the open one is empty, and goes on
	usw_segments_reap(&segments);
	CHECK_EQ(segments.used_segments, 2);
	check_held(&segments);
	check_found(&segments, places[256], 257, USW_PAGE_BYTES, USW_CODEC_LZ4);

	// An open segment that empties and is closed afterwards must not be forgotten.
	for (uint32_t i = 0; i < 254; i++)
		release(&segments, append(&segments, 7, USW_PAGE_BYTES, USW_CODEC_STORED));
	usw_segments_reap(&segments);
	CHECK_EQ(segments.used_segments, 2);
	usw_segments_close_open(&segments);
	usw_segments_reap(&segments);
	CHECK_EQ(segments.used_segments, 1);
	// One that is full is closed, and need not wait for what would not fit.
	for (uint32_t i = 0; i < 256; i++)
		release(&segments, append(&segments, 7, USW_PAGE_BYTES, USW_CODEC_STORED));
	usw_segments_reap(&segments);
	CHECK_EQ(segments.used_segments, 1);
	check_held(&segments);
	usw_segments_destroy(&segments);
}

/** Whole pages lie by themselves if there are many in a row, wherever they come from. */
static void test_whole_pages_lie_by_themselves(void)
{
	struct usw_segments segments = create(SMALL_CAPACITY);
	struct usw_object object;
	uint64_t whole = append(&segments, 1, USW_PAGE_BYTES, USW_CODEC_STORED);

	CHECK_EQ(usw_place_group(whole), segments.open[USW_LOG_WHOLE]);
	CHECK(usw_segments_find(&segments, usw_place_group(whole), 0, &object));
	CHECK(object.is_whole && object.offset_bytes == 0);
	// Among others: three to one.
	for (uint32_t i = 0; i < 40; i++) {
		uint32_t length = i % 4 ? USW_PAGE_BYTES : 1000;
		uint64_t place = append(&segments, 10 + i, length, USW_CODEC_STORED);

		CHECK(usw_segments_find(&segments, usw_place_group(place), usw_place_index(place),
					&object));
		if (i > 3)
			CHECK(!object.is_whole &&
			      usw_place_group(place) == segments.open[USW_LOG_LOOSE]);
	}
	// A row of them, with one that compresses in between.
	for (uint32_t i = 0; i < 100; i++)
		whole = append(&segments, 100 + i, i == 60 ? 500 : USW_PAGE_BYTES,
			       USW_CODEC_STORED);
	CHECK_EQ(usw_place_group(whole), segments.open[USW_LOG_WHOLE]);
	CHECK(usw_segments_find(&segments, usw_place_group(whole), usw_place_index(whole),
				&object));
	CHECK(object.is_whole);
	CHECK_EQ(object.offset_bytes, usw_place_index(whole) * USW_PAGE_BYTES);
	CHECK_THAT(usw_place_index(whole), >, 60);
	check_held(&segments);
	usw_segments_destroy(&segments);

	// Where there is no segment for them they go where there is room.
	segments = create(2);
	append(&segments, 1, 100, USW_CODEC_LZ4);
	for (uint32_t i = 0; i < 100; i++) {
		whole = append(&segments, 2 + i, USW_PAGE_BYTES, USW_CODEC_STORED);
		CHECK_EQ(usw_place_group(whole), segments.open[USW_LOG_LOOSE]);
	}
	check_held(&segments);
	usw_segments_destroy(&segments);
}

/* Releases from several threads while the owner appends and reaps. */

#define RELEASERS 3u
#define QUEUE_PLACES 4096u
#if defined(__SANITIZE_THREAD__)
#define RACE_OBJECTS 4000u
#else
#define RACE_OBJECTS 30000u
#endif

struct race {
	struct usw_segments segments;
	_Atomic uint64_t queue[QUEUE_PLACES]; /* places to be released; 0: empty */
	_Atomic bool done;
};

static void *releaser_main(void *argument)
{
	struct race *race = argument;
	bool last_pass = false;
	uint64_t state = (uint64_t)(uintptr_t)&state;

	while (!last_pass) {
		last_pass = atomic_load(&race->done);
		for (uint32_t i = 0; i < QUEUE_PLACES; i++) {
			// In disorder, or segments would empty one after the other.
			if (!last_pass && check_random(&state) % 4)
				continue;
			uint64_t place = atomic_exchange(&race->queue[i], 0);
			struct usw_object object;

			if (!place)
				continue;
			CHECK(usw_segments_find(&race->segments, usw_place_group(place),
						usw_place_index(place), &object));
			CHECK_THAT(object.length_bytes, <=, USW_PAGE_BYTES);
			release(&race->segments, place);
		}
		sched_yield();
	}
	return NULL;
}

static void test_releases_race_with_the_owner(void)
{
	static struct race race;
	pthread_t threads[RELEASERS];
	uint64_t state = 3;

	race.segments = create(64);
	for (uint32_t i = 0; i < RELEASERS; i++)
		CHECK(pthread_create(&threads[i], NULL, releaser_main, &race) == 0);
	for (uint32_t i = 0; i < RACE_OBJECTS; i++) {
		uint32_t length = 1 + (uint32_t)(check_random(&state) % USW_PAGE_BYTES);
		uint64_t place = append(&race.segments, i + 1, length, USW_CODEC_LZ4);
		uint64_t expected = 0;

		check_found(&race.segments, place, i + 1, length, USW_CODEC_LZ4);
		while (!atomic_compare_exchange_weak(
			&race.queue[check_random(&state) % QUEUE_PLACES], &expected, place))
			expected = 0;
		if (i % 64 == 0)
			usw_segments_reap(&race.segments);
	}
	atomic_store(&race.done, true);
	for (uint32_t i = 0; i < RELEASERS; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(race.segments.live_count, 0);
	CHECK_EQ(race.segments.live_bytes, 0);
	usw_segments_reap(&race.segments);
	CHECK_EQ(race.segments.used_segments, 1); // the open one
	usw_segments_check(&race.segments);
	CHECK_EQ(race.segments.used_bytes, usw_space_held_bytes(&race.segments.data));
	usw_segments_destroy(&race.segments);
}

static uint32_t fill_segment(struct usw_segments *segments, uint32_t length, uint32_t touched)
{
	uint32_t segment = 0;

	for (uint32_t i = 0; i < USW_SEGMENT_BYTES / length; i++)
		segment = usw_place_group(append(segments, i + 1, length, USW_CODEC_STORED));
	usw_segments_close_open(segments);
	atomic_store(&usw_segments_header(segments, segment)->touched, touched);
	return segment;
}

/** What did not compress before what did, of each the coldest; what is parked is found apart. */
static void test_what_goes_down_first(void)
{
	struct usw_segments segments = create(SMALL_CAPACITY);
	uint32_t order[4];

	order[1] = fill_segment(&segments, USW_PAGE_BYTES, 800);
	order[0] = fill_segment(&segments, USW_PAGE_BYTES, 700);
	order[3] = fill_segment(&segments, 1000, 900);
	order[2] = fill_segment(&segments, 3000, 100);
	segments.clock = 1000;
	CHECK_EQ(usw_segments_parked(&segments), 0);
	usw_segments_header(&segments, order[2])->is_parked = true;
	CHECK_EQ(usw_segments_parked(&segments), order[2]);
	for (uint32_t i = 0; i < 4; i++) {
		CHECK_EQ(usw_segments_coldest(&segments, USW_TIER_RAM), order[i]);
		usw_segments_header(&segments, order[i])->is_moving = true;
	}
	CHECK_EQ(usw_segments_coldest(&segments, USW_TIER_RAM), 0);
	CHECK_EQ(usw_segments_parked(&segments), 0);
	usw_segments_close_open(&segments); // there is none: nothing happens
	usw_segments_destroy(&segments);
}

/** Fill a segment with pages; returns its number. */
static uint32_t fill_with_pages(struct usw_segments *segments)
{
	uint64_t place = 0;

	for (uint32_t i = 0; i < USW_SEGMENT_BYTES / USW_PAGE_BYTES; i++)
		place = append(segments, i + 1, USW_PAGE_BYTES, USW_CODEC_STORED);
	return usw_place_group(place);
}

static void release_segment(struct usw_segments *segments, uint32_t segment)
{
	for (uint32_t i = 0; i < USW_SEGMENT_BYTES / USW_PAGE_BYTES; i++)
		release(segments, usw_place(segment, i));
}

/**
 * Of many segments, some that are free keep their RAM: for the next to be opened, and no longer.
 */
static void test_some_free_segments_stay_warm(void)
{
	enum { SEGMENTS = 130 };
	struct usw_segments segments = create(256);

	for (uint32_t i = 1; i <= SEGMENTS; i++)
		CHECK_EQ(fill_with_pages(&segments), i);
	uint64_t full = segments.used_bytes;
	release_segment(&segments, 7);
	release_segment(&segments, 8);
	release_segment(&segments, 9);
	usw_segments_reap(&segments);
	CHECK_EQ(segments.used_segments, SEGMENTS - 3);
	CHECK_EQ(segments.warm_count, 1); // of 127 that are left
	CHECK_EQ(segments.used_bytes, full - 2ull * USW_SEGMENT_BYTES);
	CHECK_EQ(usw_segments_garbage_bytes(&segments), 0);
	check_held(&segments);

	// The warm slot comes first, and holds what is new, not what it held before.
	uint64_t place = append(&segments, 77, 100, USW_CODEC_LZ4);
	struct usw_object object;
	CHECK(usw_segments_find(&segments, usw_place_group(place), 0, &object));
	CHECK(object.bytes == segments.data.base + usw_ram_slot_offset(7));
	check_found(&segments, place, 77, 100, USW_CODEC_LZ4);
	CHECK_EQ(segments.warm_count, 0);
	CHECK_EQ(segments.used_bytes, full - 2ull * USW_SEGMENT_BYTES);
	check_held(&segments);

	// What it kept and has not used goes with it.
	usw_segments_close_open(&segments);
	release(&segments, place);
	for (uint32_t i = 10; i <= SEGMENTS; i++)
		release_segment(&segments, i);
	usw_segments_reap(&segments);
	CHECK_EQ(segments.used_segments, 6);
	CHECK_EQ(segments.warm_count, 0);
	CHECK_EQ(segments.used_bytes, 6ull * USW_SEGMENT_BYTES);
	check_held(&segments);
	usw_segments_destroy(&segments);
}

/** The RAM of one that goes to a disk is there for the next, and nobody reads it as the first's. */
static void test_what_goes_down_leaves_its_ram(void)
{
	enum { SEGMENTS = 65 };
	struct usw_segments segments = create(256);
	struct usw_object object, after;

	for (uint32_t i = 1; i <= SEGMENTS; i++)
		CHECK_EQ(fill_with_pages(&segments), i);
	usw_segments_close_open(&segments);
	uint64_t full = segments.used_bytes;
	CHECK(usw_segments_find(&segments, 5, 0, &object));
	usw_segments_publish(&segments, 5, usw_where(1, 1, 3));
	CHECK_EQ(segments.warm_count, 1);
	CHECK_EQ(segments.used_bytes, full);
	CHECK(usw_segments_find(&segments, 5, 0, &after));
	CHECK_EQ(after.where, usw_where(1, 1, 3));
	CHECK(!after.bytes && after.offset_bytes == object.offset_bytes);
	check_held(&segments);

	uint64_t place = append(&segments, 77, 100, USW_CODEC_LZ4);
	CHECK_EQ(segments.warm_count, 0);
	CHECK(usw_segments_find(&segments, usw_place_group(place), 0, &after));
	CHECK(after.bytes == object.bytes);
	CHECK_EQ(segments.used_bytes, full);
	check_held(&segments);

	// It comes up to a slot of its own, and one that is not needed is there again.
	uint32_t slot = usw_segments_take_ram_slot(&segments);
	CHECK_EQ(slot, SEGMENTS + 1);
	usw_segments_give_ram_slot(&segments, slot);
	CHECK_EQ(usw_segments_take_ram_slot(&segments), slot);
	memset(segments.data.base + usw_ram_slot_offset(slot), 1, USW_SEGMENT_BYTES);
	usw_segments_publish(&segments, 5, usw_where(2, USW_TIER_RAM, slot));
	CHECK(usw_segments_find(&segments, 5, 0, &after));
	CHECK(after.bytes == segments.data.base + usw_ram_slot_offset(slot));
	check_held(&segments);
	usw_segments_destroy(&segments);
}

int main(void)
{
	check_start(100);
	test_what_goes_down_leaves_its_ram();
	test_some_free_segments_stay_warm();
	test_objects_of_every_length();
	test_segments_are_filled_up();
	test_segments_run_out();
	test_nonsense_is_not_found();
	test_contradictions_abort();
	test_the_emptiest_is_found();
	test_tables_share_pages();
	test_reap_takes_closed_and_empty_ones_only();
	test_a_segment_full_of_small_objects_is_not_garbage();
	test_whole_pages_lie_by_themselves();
	test_what_goes_down_first();
	test_releases_race_with_the_owner();
	return 0;
}
