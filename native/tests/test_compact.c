// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: compaction gives memory back, never changes or loses a page, and comes to an end; a reader
 * without a lock is never given wrong bytes and never told that right content is corrupt.
 * Method: known pages in segments made sparse on purpose; then readers that fault, fork and drop
 * pages against an owner that drains, fills vacancies, compacts, packs, reaps and collects without
 * a pause.
 */

#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "compact.h"
#include "pack.h"
#include "priority.h"
#include "vacancy.h"

#define SEGMENT_PAGES (USW_SEGMENT_BYTES / USW_PAGE_BYTES)

struct world {
	struct usw_segments segments;
	struct usw_vswap vswap;
};

static void world_init(struct world *world, uint32_t segments, uint32_t ids)
{
	CHECK_EQ(usw_segments_create(&world->segments, segments), 0);
	CHECK_EQ(usw_vswap_create(&world->vswap, &world->segments, ids), 0);
}

static void world_deinit(struct world *world)
{
	usw_vswap_destroy(&world->vswap);
	usw_segments_destroy(&world->segments);
}

/** Store a page as an object, by way of `memory` as eviction does. NONE: no room. */
static uint32_t store(struct world *world, enum check_kind kind, uint64_t seed)
{
	char page[USW_PAGE_BYTES];
	char object[USW_PAGE_BYTES];
	enum usw_codec codec;
	uint64_t place;
	uint32_t id;

	check_fill(page, kind, seed);
	CHECK_EQ(usw_vswap_alloc(&world->vswap, USW_BACKEND_MEMORY, 0,
				 usw_codec_hash(page, CHECK_SEED), &id),
		 0);
	uint32_t length = usw_codec_compress(&(struct usw_codec_hint){0}, page, object, &codec);
	if (usw_segments_append(&world->segments, USW_LOG_LOOSE, id, object, length, codec,
				&place)) {
		usw_vswap_put(&world->vswap, id);
		return USW_VSWAP_NONE;
	}
	CHECK(usw_vswap_repoint(&world->vswap, id, USW_BACKEND_MEMORY, 0, USW_BACKEND_OBJECT,
				place));
	return id;
}

static void check_content(const struct world *world, uint32_t id, enum check_kind kind,
			  uint64_t seed)
{
	char wanted[USW_PAGE_BYTES];
	char page[USW_PAGE_BYTES];

	check_fill(wanted, kind, seed);
	CHECK_EQ(check_read(&world->vswap, NULL, id, page), CHECK_READ_RIGHT);
	CHECK(memcmp(page, wanted, USW_PAGE_BYTES) == 0);
}

static uint64_t held_bytes(const struct usw_segments *segments)
{
	return segments->used_bytes + usw_segments_metadata_bytes(segments);
}

static void test_sparse_segments_are_emptied(void)
{
	enum { PAGES = 8 * SEGMENT_PAGES };
	static uint32_t ids[PAGES];
	struct world world;
	uint64_t live = 0;

	world_init(&world, 32, 16 * 256);
	CHECK_EQ(usw_compact_one(&world.vswap), 0); // nothing there at all
	for (uint32_t i = 0; i < PAGES; i++)
		ids[i] = store(&world, CHECK_RANDOM, i);
	CHECK_EQ(usw_compact_one(&world.vswap), 0); // nothing is garbage
	for (uint32_t i = 0; i < PAGES; i++) {
		// From segment to segment more is dropped: the emptiest is to go first.
		if (i % 8 <= i / SEGMENT_PAGES) {
			usw_vswap_put(&world.vswap, ids[i]);
			ids[i] = USW_VSWAP_NONE;
		} else {
			live++;
		}
	}
	uint64_t held_before = held_bytes(&world.segments);
	unsigned int emptied = 0;
	while (usw_compact_one(&world.vswap) == 1) {
		emptied++;
		CHECK_THAT(emptied, <=, 16);
		usw_segments_check(&world.segments);
	}
	CHECK_THAT(emptied, >=, 4);
	CHECK_EQ(world.segments.compacted_segments, emptied);
	CHECK_THAT(held_bytes(&world.segments), <, held_before);
	CHECK_EQ(world.segments.used_bytes, usw_space_held_bytes(&world.segments.data));
	CHECK_EQ(world.segments.live_count, live);
	// Three quarters full or more, but for the open one.
	CHECK_THAT(usw_segments_garbage_bytes(&world.segments), <=,
		   live * USW_PAGE_BYTES / 3 + USW_SEGMENT_BYTES);
	for (uint32_t i = 0; i < PAGES; i++)
		if (ids[i])
			check_content(&world, ids[i], CHECK_RANDOM, i);
	world_deinit(&world);
}

/** Segments that are full of small objects and alive must not be moved around for ever. */
static void test_small_objects_come_to_rest(void)
{
	enum { PAGES = 3 * USW_SEGMENT_OBJECTS };
	static uint32_t ids[PAGES];
	struct world world;
	unsigned int emptied = 0;

	world_init(&world, 32, 64 * 256);
	for (uint32_t i = 0; i < PAGES; i++)
		ids[i] = store(&world, CHECK_TINY, i);
	CHECK_EQ(usw_compact_one(&world.vswap), 0);
	for (uint32_t i = 0; i < PAGES; i += 2)
		usw_vswap_put(&world.vswap, ids[i]);
	while (usw_compact_one(&world.vswap) == 1)
		CHECK_THAT(++emptied, <=, 8);
	CHECK_THAT(emptied, >=, 2);
	for (uint32_t i = 1; i < PAGES; i += 2)
		check_content(&world, ids[i], CHECK_TINY, i);
	usw_segments_check(&world.segments);
	world_deinit(&world);
}

/**
 * Without a segment to move to, compaction says so, loses nothing, and goes on when there is one.
 */
static void test_no_room_to_move_to(void)
{
	enum { PAGES = 4 * SEGMENT_PAGES };
	static uint32_t ids[PAGES];
	struct world world;

	world_init(&world, 5, 8 * 256);
	for (uint32_t i = 0; i < PAGES; i++)
		CHECK((ids[i] = store(&world, CHECK_RANDOM, i)) != USW_VSWAP_NONE);
	CHECK_EQ(store(&world, CHECK_RANDOM, 0), USW_VSWAP_NONE);
	for (uint32_t i = 0; i < SEGMENT_PAGES / 2; i++)
		usw_vswap_put(&world.vswap, ids[i]);
	CHECK_EQ(usw_compact_one(&world.vswap), -ENOSPC);
	usw_segments_check(&world.segments);
	for (uint32_t i = SEGMENT_PAGES / 2; i < PAGES; i++)
		check_content(&world, ids[i], CHECK_RANDOM, i);

	for (uint32_t i = SEGMENT_PAGES; i < 2 * SEGMENT_PAGES; i++)
		usw_vswap_put(&world.vswap, ids[i]);
	usw_segments_reap(&world.segments);
	CHECK_EQ(usw_compact_one(&world.vswap), 1);
	CHECK_EQ(world.segments.used_segments, 3);
	usw_segments_check(&world.segments);
	for (uint32_t i = SEGMENT_PAGES / 2; i < PAGES; i++)
		if (i / SEGMENT_PAGES != 1)
			check_content(&world, ids[i], CHECK_RANDOM, i);
	world_deinit(&world);
}

/** Content that is wrong stays wrong wherever it is moved: it is found out, never handed over. */
static void test_damage_is_found_out(void)
{
	struct world world;
	char page[USW_PAGE_BYTES];
	struct usw_object object;

	world_init(&world, 8, 256);
	uint32_t id = store(&world, CHECK_RANDOM, 1);
	uint64_t place = usw_word_place(usw_vswap_word(&world.vswap, id));
	CHECK(usw_segments_find(&world.segments, usw_place_group(place), usw_place_index(place),
				&object));
	check_content(&world, id, CHECK_RANDOM, 1);
	((char *)(uintptr_t)object.bytes)[1234] ^= 1;
	CHECK_EQ(check_read(&world.vswap, NULL, id, page), CHECK_READ_CORRUPT);
	((char *)(uintptr_t)object.bytes)[1234] ^= 1;
	check_content(&world, id, CHECK_RANDOM, 1);
	world_deinit(&world);
}

/*
 * Everything at once. A cell holds one reference and the seed of the page behind it. Threads take a
 * cell's content out, read the page and compare it, then put it back, share it or drop it.
 */

#define CELLS 3000u
#define THREADS 2u
#define SLOTS 64u
#if defined(__SANITIZE_THREAD__)
#define OWNER_ROUNDS 15000u
#elif defined(__SANITIZE_ADDRESS__)
#define OWNER_ROUNDS 40000u
#else
#define OWNER_ROUNDS 60000u
#endif

struct storm {
	struct world world;
	_Atomic uint64_t cells[CELLS]; /* seed 32 | ID 32 */
	_Atomic bool done;
	_Atomic uint64_t reads;
	uint64_t fills; /* of vacancies; owner */

	/* Owner only: the standby slots are a ring, as in a target. */
	struct usw_vacancies vacancies;
	struct usw_packer packer;
	char standby[SLOTS * USW_PAGE_BYTES] __attribute__((aligned(64)));
	uint32_t owner[SLOTS];
	uint32_t head, tail;
};

static enum check_kind kind_of(uint32_t seed)
{
	return seed % CHECK_KINDS;
}

static void give(struct storm *storm, uint64_t cell, uint64_t *state)
{
	for (unsigned int tries = 0; tries < 4; tries++) {
		uint64_t empty = 0;

		if (atomic_compare_exchange_strong(&storm->cells[check_random(state) % CELLS],
						   &empty, cell))
			return;
	}
	usw_vswap_put(&storm->world.vswap, (uint32_t)cell);
}

static void *reader_main(void *argument)
{
	struct storm *storm = argument;
	uint64_t state = (uint64_t)(uintptr_t)&state;
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	char wanted[USW_PAGE_BYTES] __attribute__((aligned(8)));

	while (!atomic_load(&storm->done)) {
		uint64_t cell = atomic_exchange(&storm->cells[check_random(&state) % CELLS], 0);
		uint32_t id = (uint32_t)cell;
		uint32_t seed = (uint32_t)(cell >> 32);

		if (!cell) {
			sched_yield();
			continue;
		}
		CHECK_EQ(check_read(&storm->world.vswap, storm->standby, id, page),
			 CHECK_READ_RIGHT);
		check_fill(wanted, kind_of(seed), seed);
		CHECK(memcmp(page, wanted, USW_PAGE_BYTES) == 0);
		atomic_fetch_add_explicit(&storm->reads, 1, memory_order_relaxed);
		switch (check_random(&state) % 8) {
		case 0:
		case 1:
			usw_vswap_put(&storm->world.vswap, id);
			break;
		case 2:
			usw_vswap_get(&storm->world.vswap, id);
			give(storm, cell, &state);
			give(storm, cell, &state);
			break;
		default:
			give(storm, cell, &state);
		}
	}
	return NULL;
}

/** Overwrite a slot that readers may still be looking at. */
USW_OPTIMISTIC
static void fill_slot(char *slot, const char *page)
{
	volatile uint64_t *to = (uint64_t *)slot;

	for (size_t i = 0; i < CHECK_PAGE_WORDS; i++)
		to[i] = ((const uint64_t *)page)[i];
}

/** Compress the oldest slot, if its ID is still there. False: no segment is left. */
static bool drain_one(struct storm *storm)
{
	struct world *world = &storm->world;
	uint32_t slot = storm->tail % SLOTS;
	uint32_t id = storm->owner[slot];
	char object[USW_PAGE_BYTES];
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	enum usw_codec codec;
	uint64_t place;
	uint64_t word = usw_vswap_word(&world->vswap, id);

	if (usw_word_backend(word) == USW_BACKEND_MEMORY &&
	    usw_word_place(word) == usw_place(0, slot)) {
		check_copy_racing(page, storm->standby + slot * USW_PAGE_BYTES);
		uint32_t length =
			usw_codec_compress(&(struct usw_codec_hint){0}, page, object, &codec);

		if (usw_vacancies_store(&storm->vacancies, &world->segments, id, object, length,
					codec, &place))
			return false;
		// What is appended is the last of its segment.
		storm->fills +=
			usw_place_index(place) + 1 !=
			usw_segments_header(&world->segments, usw_place_group(place))->object_count;
		if (!usw_vswap_repoint(&world->vswap, id, USW_BACKEND_MEMORY, usw_place(0, slot),
				       USW_BACKEND_OBJECT, place))
			usw_segments_release(&world->segments, usw_place_group(place),
					     usw_place_index(place));
	}
	storm->tail++;
	return true;
}

/** Evict one new page into the standby. */
static void evict_one(struct storm *storm, uint32_t seed, uint64_t *state)
{
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	struct usw_vswap *vswap = &storm->world.vswap;
	uint32_t slot = storm->head % SLOTS;
	uint64_t word;
	uint32_t id;
	int ret;

	check_fill(page, kind_of(seed), seed);
	if (usw_codec_is_repeated(page, &word)) {
		ret = usw_vswap_alloc(vswap, word ? USW_BACKEND_SAME : USW_BACKEND_ZERO, 0, word,
				      &id);
	} else {
		if (storm->head - storm->tail == SLOTS && !drain_one(storm))
			return;
		fill_slot(storm->standby + slot * USW_PAGE_BYTES, page);
		ret = usw_vswap_alloc(vswap, USW_BACKEND_MEMORY, usw_place(0, slot),
				      usw_codec_hash(page, CHECK_SEED), &id);
		if (ret == 0) {
			storm->owner[slot] = id;
			storm->head++;
		}
	}
	if (ret == 0)
		give(storm, (uint64_t)seed << 32 | id, state);
}

static void on_packed(void *context)
{
	(void)context;
}

/**
 * Threads that had little of the processor leave few holes, and the packer takes what nobody wants:
 * on a busy machine both have done next to nothing in so many rounds, and the owner goes on. The
 * packer waits no more then.
 */
static bool is_enough(const struct storm *storm, uint32_t rounds)
{
	const struct usw_packer *packer = &storm->packer;

	if (rounds < OWNER_ROUNDS)
		return false;
	if (packer->is_started)
		usw_priority_wait_no_more(packer->thread);
	return storm->fills > 100 && (packer->packed_pages > 100 || packer->is_impossible);
}

static void run_owner(struct storm *storm)
{
	struct world *world = &storm->world;
	uint64_t state = 1;

	for (uint32_t round = 1; !is_enough(storm, round); round++) {
		storm->vacancies.is_wanted = round / 1000 % 2;
		evict_one(storm, round, &state);
		if (round % 8 == 0)
			usw_vswap_collect(&world->vswap);
		if (round % 32 == 0)
			usw_segments_reap(&world->segments);
		if (round % 64 == 0)
			usw_compact_one(&world->vswap);
		world->segments.clock = round;
		usw_pack_step(&storm->packer, USW_PACK_COLD);
		storm->packer.after_ns = 0; // no rest
	}
}

static void test_readers_against_the_owner(void)
{
	static struct storm storm;
	struct world *world = &storm.world;
	pthread_t threads[THREADS];

	world_init(world, 24, 32 * 256);
	usw_packer_init(&storm.packer, &world->vswap, CHECK_SEED, on_packed, NULL);
	for (uint32_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, reader_main, &storm) == 0);
	run_owner(&storm);
	atomic_store(&storm.done, true);
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	CHECK_THAT(storm.reads, >, 100);
	CHECK_THAT(world->segments.compacted_segments, >, 0);
	usw_packer_deinit(&storm.packer);
	usw_segments_check(&world->segments);

	for (uint32_t i = 0; i < CELLS; i++)
		if (storm.cells[i])
			usw_vswap_put(&world->vswap, (uint32_t)storm.cells[i]);
	CHECK_EQ(world->vswap.live_count, 0);
	CHECK_EQ(world->segments.live_count, 0);
	usw_vswap_collect(&world->vswap);
	CHECK_EQ(usw_vswap_held_bytes(&world->vswap), 0);
	usw_segments_reap(&world->segments);
	usw_segments_check(&world->segments);
	CHECK_THAT(world->segments.used_segments, <=, 3); // the open ones
	world_deinit(world);
}

int main(void)
{
	check_start(100);
	test_sparse_segments_are_emptied();
	test_small_objects_come_to_rest();
	test_no_room_to_move_to();
	test_damage_is_found_out();
	test_readers_against_the_owner();
	return 0;
}
