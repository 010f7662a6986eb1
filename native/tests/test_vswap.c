// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: an ID lives exactly as long as somebody refers to it, says where its content is, and gives
 * everything back.
 * Method: each promise of vswap.h alone; then threads that pass references around while the owner
 * allocates, repoints and collects, with every reference accounted for at the end.
 */

#include <pthread.h>
#include <sched.h>

#include "check.h"

#define BLOCK_IDS 256u

struct world {
	struct usw_segments segments;
	struct usw_vswap vswap;
};

static void world_init(struct world *world, uint32_t capacity)
{
	CHECK_EQ(usw_segments_create(&world->segments, 8), 0);
	CHECK_EQ(usw_vswap_create(&world->vswap, &world->segments, capacity), 0);
}

static void world_deinit(struct world *world)
{
	usw_vswap_destroy(&world->vswap);
	usw_segments_destroy(&world->segments);
}

static uint32_t alloc(struct world *world, enum usw_backend backend, uint64_t place, uint64_t hash)
{
	uint32_t id = USW_VSWAP_NONE;

	CHECK_EQ(usw_vswap_alloc(&world->vswap, backend, place, hash, &id), 0);
	CHECK_THAT(id, !=, USW_VSWAP_NONE);
	CHECK_THAT(id, <, world->vswap.capacity);
	return id;
}

static void check_descriptor(const struct world *world, uint32_t id, enum usw_backend backend,
			     uint64_t place, uint32_t count)
{
	uint64_t word = usw_vswap_word(&world->vswap, id);

	CHECK_EQ(usw_word_backend(word), backend);
	CHECK_EQ(usw_word_place(word), place);
	CHECK_EQ(usw_word_count(word), count);
}

static void check_held(const struct world *world)
{
	CHECK_EQ(usw_vswap_held_bytes(&world->vswap), usw_space_held_bytes(&world->vswap.space));
}

static void test_descriptors_keep_their_fields(void)
{
	static const uint64_t places[] = {
		0, 1, 0xffff, 0x10000, 0x123456789a, ((uint64_t)1 << 40) - 1};
	struct world world;

	world_init(&world, BLOCK_IDS);
	for (enum usw_backend backend = USW_BACKEND_ZERO; backend <= USW_BACKEND_MEMORY;
	     backend++) {
		for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
			uint32_t id = alloc(&world, backend, places[i], ~places[i]);

			check_descriptor(&world, id, backend, places[i], 1);
			CHECK_EQ(usw_vswap_hash(&world.vswap, id), ~places[i]);
		}
	}
	CHECK_EQ(usw_place_group(usw_place(0xffffff, 0xffff)), 0xffffff);
	CHECK_EQ(usw_place_index(usw_place(0xffffff, 0xffff)), 0xffff);
	world_deinit(&world);
}

static void test_references_are_counted(void)
{
	struct world world;
	uint64_t place;

	world_init(&world, BLOCK_IDS);
	uint32_t id = alloc(&world, USW_BACKEND_ZERO, 0, 0);
	for (uint32_t count = 2; count < 100; count++) {
		usw_vswap_get(&world.vswap, id);
		check_descriptor(&world, id, USW_BACKEND_ZERO, 0, count);
	}
	for (uint32_t count = 98; count > 0; count--) {
		usw_vswap_put(&world.vswap, id);
		check_descriptor(&world, id, USW_BACKEND_ZERO, 0, count);
	}
	CHECK_EQ(world.vswap.live_count, 1);
	usw_vswap_put(&world.vswap, id);
	CHECK_EQ(usw_vswap_word(&world.vswap, id), 0);
	CHECK_EQ(world.vswap.live_count, 0);

	// With the last reference the object goes too.
	id = alloc(&world, USW_BACKEND_MEMORY, 5, 0);
	CHECK_EQ(usw_segments_append(&world.segments, USW_LOG_LOOSE, id, "object", 6, USW_CODEC_LZ4,
				     &place),
		 0);
	CHECK(usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 5, USW_BACKEND_OBJECT,
				place));
	usw_vswap_get(&world.vswap, id);
	usw_vswap_put(&world.vswap, id);
	CHECK_EQ(world.segments.live_count, 1);
	usw_vswap_put(&world.vswap, id);
	CHECK_EQ(world.segments.live_count, 0);
	world_deinit(&world);
}

/** At the maximum a count sticks: too many references must not look like few. */
static void test_a_full_count_sticks(void)
{
	struct world world;

	world_init(&world, BLOCK_IDS);
	uint32_t id = alloc(&world, USW_BACKEND_MEMORY, 7, 99);
	for (uint32_t i = 1; i < USW_VSWAP_COUNT_MAX + 10; i++)
		usw_vswap_get(&world.vswap, id);
	check_descriptor(&world, id, USW_BACKEND_MEMORY, 7, USW_VSWAP_COUNT_MAX);
	CHECK(usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 7, USW_BACKEND_MEMORY, 8));
	for (uint32_t i = 0; i < USW_VSWAP_COUNT_MAX + 10; i++)
		usw_vswap_put(&world.vswap, id);
	check_descriptor(&world, id, USW_BACKEND_MEMORY, 8, USW_VSWAP_COUNT_MAX);
	CHECK_EQ(usw_vswap_hash(&world.vswap, id), 99);
	CHECK_EQ(world.vswap.live_count, 1);
	world_deinit(&world);
}

static void test_repoint_only_from_where_it_was(void)
{
	struct world world;

	world_init(&world, BLOCK_IDS);
	uint32_t id = alloc(&world, USW_BACKEND_MEMORY, 7, 99);
	usw_vswap_get(&world.vswap, id);
	CHECK(!usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 6, USW_BACKEND_MEMORY, 8));
	CHECK(!usw_vswap_repoint(&world.vswap, id, USW_BACKEND_ZERO, 7, USW_BACKEND_MEMORY, 8));
	check_descriptor(&world, id, USW_BACKEND_MEMORY, 7, 2);
	CHECK(usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 7, USW_BACKEND_MEMORY, 8));
	check_descriptor(&world, id, USW_BACKEND_MEMORY, 8, 2);
	CHECK_EQ(usw_vswap_hash(&world.vswap, id), 99);
	CHECK(!usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 7, USW_BACKEND_MEMORY, 9));

	usw_vswap_put(&world.vswap, id);
	usw_vswap_put(&world.vswap, id);
	CHECK(!usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 8, USW_BACKEND_MEMORY, 9));
	CHECK_EQ(usw_vswap_word(&world.vswap, id), 0);
	world_deinit(&world);
}

/** Content that left and came back has moved, whatever its place says. */
static void test_a_move_there_and_back_is_seen(void)
{
	struct world world;

	world_init(&world, BLOCK_IDS);
	uint32_t id = alloc(&world, USW_BACKEND_MEMORY, 7, 99);
	uint64_t before = usw_vswap_word(&world.vswap, id);
	usw_vswap_get(&world.vswap, id);
	CHECK(usw_word_is_unmoved(before, usw_vswap_word(&world.vswap, id)));
	CHECK(usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 7, USW_BACKEND_MEMORY, 8));
	CHECK(usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 8, USW_BACKEND_MEMORY, 7));
	check_descriptor(&world, id, USW_BACKEND_MEMORY, 7, 2);
	CHECK(!usw_word_is_unmoved(before, usw_vswap_word(&world.vswap, id)));
	for (uint64_t i = 0; i < 40; i++) {
		CHECK(usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, i ? i + 6 : 7,
					USW_BACKEND_MEMORY, i + 7));
		check_descriptor(&world, id, USW_BACKEND_MEMORY, i + 7, 2);
	}
	world_deinit(&world);
}

static void test_ids_run_out_and_come_back(void)
{
	static bool seen[4 * BLOCK_IDS];
	struct world world;
	uint32_t id = 77;

	world_init(&world, 4 * BLOCK_IDS);
	for (unsigned int round = 0; round < 3; round++) {
		memset(seen, 0, sizeof(seen));
		for (uint32_t i = 1; i < 4 * BLOCK_IDS; i++) {
			id = alloc(&world, USW_BACKEND_ZERO, 0, 0);
			CHECK(!seen[id]);
			seen[id] = true;
		}
		CHECK_EQ(world.vswap.live_count, 4 * BLOCK_IDS - 1);
		check_held(&world);
		id = 77;
		CHECK_EQ(usw_vswap_alloc(&world.vswap, USW_BACKEND_ZERO, 0, 0, &id), -ENOSPC);
		CHECK_EQ(id, 77);
		// Freed is not free before the owner has collected it.
		usw_vswap_put(&world.vswap, 600);
		CHECK_EQ(usw_vswap_alloc(&world.vswap, USW_BACKEND_ZERO, 0, 0, &id), -ENOSPC);
		usw_vswap_collect(&world.vswap);
		CHECK_EQ(alloc(&world, USW_BACKEND_ZERO, 0, 0), 600);
		for (uint32_t i = 1; i < 4 * BLOCK_IDS; i++)
			usw_vswap_put(&world.vswap, round & 1 ? i : 4 * BLOCK_IDS - i);
		CHECK_EQ(world.vswap.live_count, 0);
		usw_vswap_collect(&world.vswap);
		CHECK_EQ(usw_vswap_held_bytes(&world.vswap), 0);
		check_held(&world);
	}
	world_deinit(&world);
}

/** The table stays dense, and a block without an ID costs nothing. */
static void test_the_lowest_block_is_used_first(void)
{
	struct world world;

	world_init(&world, 8 * BLOCK_IDS);
	for (uint32_t i = 1; i < 5 * BLOCK_IDS; i++)
		alloc(&world, USW_BACKEND_ZERO, 0, 0);
	CHECK_EQ(usw_vswap_held_bytes(&world.vswap), 5 * USW_PAGE_BYTES);
	for (uint32_t id = 2 * BLOCK_IDS; id < 3 * BLOCK_IDS; id++)
		usw_vswap_put(&world.vswap, id);
	usw_vswap_put(&world.vswap, 4 * BLOCK_IDS);
	CHECK_EQ(usw_vswap_held_bytes(&world.vswap), 5 * USW_PAGE_BYTES);
	usw_vswap_collect(&world.vswap);
	CHECK_EQ(usw_vswap_held_bytes(&world.vswap), 4 * USW_PAGE_BYTES);
	check_held(&world);
	for (uint32_t i = 0; i < BLOCK_IDS; i++) {
		uint32_t id = alloc(&world, USW_BACKEND_ZERO, 0, 0);

		CHECK_EQ(id / BLOCK_IDS, 2);
		CHECK_EQ(usw_vswap_hash(&world.vswap, id), 0);
	}
	CHECK_EQ(alloc(&world, USW_BACKEND_ZERO, 0, 0), 4 * BLOCK_IDS);
	CHECK_EQ(alloc(&world, USW_BACKEND_ZERO, 0, 0), 5 * BLOCK_IDS);
	check_held(&world);
	world_deinit(&world);
}

static void test_contradictions_abort(void)
{
	struct world world;
	uint32_t id;

	world_init(&world, BLOCK_IDS);
	CHECK_ABORTS(usw_vswap_get(&world.vswap, 5));
	CHECK_ABORTS(usw_vswap_put(&world.vswap, 5));
	CHECK_ABORTS(usw_vswap_get(&world.vswap, USW_VSWAP_NONE));
	CHECK_ABORTS(usw_vswap_put(&world.vswap, BLOCK_IDS));
	CHECK_ABORTS(usw_vswap_word(&world.vswap, USW_VSWAP_NONE));
	CHECK_ABORTS(usw_vswap_word(&world.vswap, UINT32_MAX));
	CHECK_ABORTS(usw_vswap_alloc(&world.vswap, USW_BACKEND_FREE, 0, 0, &id));
	CHECK_ABORTS(usw_vswap_alloc(&world.vswap, USW_BACKEND_MEMORY, (uint64_t)1 << 40, 0, &id));
	id = alloc(&world, USW_BACKEND_MEMORY, 1, 0);
	CHECK_ABORTS(usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 1, USW_BACKEND_MEMORY,
				       (uint64_t)1 << 40));
	CHECK_ABORTS({
		usw_vswap_put(&world.vswap, id);
		usw_vswap_put(&world.vswap, id);
	});
	world_deinit(&world);

	// An object that is released twice: the second put is the one that notices.
	world_init(&world, BLOCK_IDS);
	uint64_t place;
	id = alloc(&world, USW_BACKEND_MEMORY, 1, 0);
	CHECK_EQ(usw_segments_append(&world.segments, USW_LOG_LOOSE, id, "object", 6, USW_CODEC_LZ4,
				     &place),
		 0);
	CHECK(usw_vswap_repoint(&world.vswap, id, USW_BACKEND_MEMORY, 1, USW_BACKEND_OBJECT,
				place));
	usw_segments_release(&world.segments, usw_place_group(place), usw_place_index(place));
	CHECK_ABORTS(usw_vswap_put(&world.vswap, id));
	world_deinit(&world);
}

/* Many references to few IDs: no count may be lost, nor a place. */

#define CONTENDED_IDS 2u
#if defined(__SANITIZE_THREAD__)
#define CONTENDED_ROUNDS 20000u
#else
#define CONTENDED_ROUNDS 300000u
#endif

struct contention {
	struct world world;
	uint32_t ids[CONTENDED_IDS];
};

static void *contender_main(void *argument)
{
	struct contention *contention = argument;

	for (uint32_t round = 0; round < CONTENDED_ROUNDS; round++) {
		uint32_t id = contention->ids[round % CONTENDED_IDS];

		usw_vswap_get(&contention->world.vswap, id);
		usw_vswap_put(&contention->world.vswap, id);
	}
	return NULL;
}

static void test_a_contended_count_is_exact(void)
{
	static struct contention contention;
	struct world *world = &contention.world;
	pthread_t threads[2];

	world_init(world, BLOCK_IDS);
	for (uint32_t i = 0; i < CONTENDED_IDS; i++)
		contention.ids[i] = alloc(world, USW_BACKEND_MEMORY, 0, i);
	for (uint32_t i = 0; i < 2; i++)
		CHECK(pthread_create(&threads[i], NULL, contender_main, &contention) == 0);
	for (uint32_t round = 0; round < CONTENDED_ROUNDS; round++) {
		uint32_t id = contention.ids[round % CONTENDED_IDS];

		CHECK(usw_vswap_repoint(&world->vswap, id, USW_BACKEND_MEMORY,
					round / CONTENDED_IDS, USW_BACKEND_MEMORY,
					round / CONTENDED_IDS + 1));
	}
	for (uint32_t i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	for (uint32_t i = 0; i < CONTENDED_IDS; i++) {
		check_descriptor(world, contention.ids[i], USW_BACKEND_MEMORY,
				 CONTENDED_ROUNDS / CONTENDED_IDS, 1);
		CHECK_EQ(usw_vswap_hash(&world->vswap, contention.ids[i]), i);
	}
	world_deinit(world);
}

/*
 * References on the move. Every cell holds one reference or none; whoever takes it out of its cell
 * holds it. Threads take, double, give away and drop them; the owner fills empty cells.
 */

#define CELLS 2000u
#define THREADS 3u
#if defined(__SANITIZE_THREAD__)
#define OWNER_ROUNDS 60000u
#else
#define OWNER_ROUNDS 400000u
#endif

struct exchange {
	struct world world;
	_Atomic uint32_t cells[CELLS];
	_Atomic bool done;
};

/** Give a reference to a random empty cell; drop it if none is found soon. */
static void give(struct exchange *exchange, uint32_t id, uint64_t *state)
{
	for (unsigned int tries = 0; tries < 4; tries++) {
		uint32_t empty = USW_VSWAP_NONE;

		if (atomic_compare_exchange_strong(&exchange->cells[check_random(state) % CELLS],
						   &empty, id))
			return;
	}
	usw_vswap_put(&exchange->world.vswap, id);
}

static void *passer_main(void *argument)
{
	struct exchange *exchange = argument;
	uint64_t state = (uint64_t)(uintptr_t)&state;

	while (!atomic_load(&exchange->done)) {
		uint32_t id = atomic_exchange(&exchange->cells[check_random(&state) % CELLS],
					      USW_VSWAP_NONE);

		if (!id) {
			sched_yield();
			continue;
		}
		CHECK_THAT(usw_word_count(usw_vswap_word(&exchange->world.vswap, id)), >, 0);
		switch (check_random(&state) % 4) {
		case 0:
		case 1:
			usw_vswap_put(&exchange->world.vswap, id);
			break;
		case 2:
			usw_vswap_get(&exchange->world.vswap, id);
			give(exchange, id, &state);
			give(exchange, id, &state);
			break;
		default:
			give(exchange, id, &state);
		}
	}
	return NULL;
}

/** Move what a random cell refers to, if it is still there; it may be freed at any moment. */
static void move_something(struct exchange *exchange, uint64_t *state)
{
	struct world *world = &exchange->world;
	uint32_t id = atomic_load(&exchange->cells[check_random(state) % CELLS]);
	uint64_t new_place;

	if (!id)
		return;
	uint64_t word = usw_vswap_word(&world->vswap, id);
	enum usw_backend backend = usw_word_backend(word);
	uint64_t place = usw_word_place(word);
	if (backend == USW_BACKEND_FREE)
		return;
	if (usw_segments_append(&world->segments, USW_LOG_LOOSE, id, &id, sizeof(id), USW_CODEC_LZ4,
				&new_place))
		return;
	if (!usw_vswap_repoint(&world->vswap, id, backend, place, USW_BACKEND_OBJECT, new_place))
		place = new_place;
	else if (backend != USW_BACKEND_OBJECT)
		return;
	usw_segments_release(&world->segments, usw_place_group(place), usw_place_index(place));
}

static void test_references_on_the_move(void)
{
	static struct exchange exchange;
	struct world *world = &exchange.world;
	pthread_t threads[THREADS];
	uint64_t state = 1;

	world_init(world, 16 * BLOCK_IDS);
	for (uint32_t i = 0; i < THREADS; i++)
		CHECK(pthread_create(&threads[i], NULL, passer_main, &exchange) == 0);
	for (uint32_t round = 0; round < OWNER_ROUNDS; round++) {
		uint32_t id;

		if (usw_vswap_alloc(&world->vswap, USW_BACKEND_MEMORY, round, round, &id) == 0)
			give(&exchange, id, &state);
		move_something(&exchange, &state);
		if (round % 16 == 0)
			usw_vswap_collect(&world->vswap);
		if (round % 64 == 0)
			usw_segments_reap(&world->segments);
	}
	atomic_store(&exchange.done, true);
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);

	// Every ID is referred to by exactly as many cells as its count says.
	static uint32_t found[16 * BLOCK_IDS];
	for (uint32_t i = 0; i < CELLS; i++)
		found[exchange.cells[i]]++;
	uint64_t live = 0;
	for (uint32_t id = 1; id < 16 * BLOCK_IDS; id++) {
		CHECK_EQ(usw_word_count(usw_vswap_word(&world->vswap, id)), found[id]);
		live += found[id] > 0;
	}
	CHECK_EQ(world->vswap.live_count, live);
	for (uint32_t i = 0; i < CELLS; i++)
		if (exchange.cells[i])
			usw_vswap_put(&world->vswap, exchange.cells[i]);
	CHECK_EQ(world->vswap.live_count, 0);
	CHECK_EQ(world->segments.live_count, 0);
	usw_vswap_collect(&world->vswap);
	CHECK_EQ(usw_vswap_held_bytes(&world->vswap), 0);
	usw_segments_reap(&world->segments);
	usw_segments_check(&world->segments);
	CHECK_THAT(world->segments.used_segments, <=, 1);
	world_deinit(world);
}

int main(void)
{
	check_start(100);
	test_descriptors_keep_their_fields();
	test_references_are_counted();
	test_a_full_count_sticks();
	test_repoint_only_from_where_it_was();
	test_a_move_there_and_back_is_seen();
	test_ids_run_out_and_come_back();
	test_the_lowest_block_is_used_first();
	test_contradictions_abort();
	test_a_contended_count_is_exact();
	test_references_on_the_move();
	return 0;
}
