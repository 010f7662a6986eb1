// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: equal pages share one ID, pages that are not equal never do, whatever the table says, and
 * the table stays as small as it promises.
 * Method: each promise of equal.h alone, with hashes that are forged, entries that are out of date,
 * content that is damaged; then an owner that evicts, drains, compacts and collects beside threads
 * that put references, with every content looked at and every reference accounted for.
 */

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include "check.h"
#include "compact.h"
#include "equal.h"

#define SLOTS 512u
#define LINE_IDS 256u

struct world {
	struct usw_segments segments;
	struct usw_vswap vswap;
	struct usw_standby_space standbys;
	struct usw_standby standby;
	struct usw_equal equal;
	struct usw_equal_run run;
	int area_fd;
	char *slots; /* what hands writes to */
};

static void world_init(struct world *world, uint32_t capacity, uint32_t segments)
{
	*world = (struct world){.area_fd = memfd_create("area", MFD_CLOEXEC)};
	CHECK(world->area_fd >= 0);
	CHECK(ftruncate(world->area_fd, USW_AREA_MEMFD_BYTES) == 0);
	world->slots = mmap(NULL, USW_STANDBY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
			    world->area_fd, USW_RING_BYTES);
	CHECK(world->slots != MAP_FAILED);
	CHECK_EQ(usw_segments_create(&world->segments, segments), 0);
	CHECK_EQ(usw_vswap_create(&world->vswap, &world->segments, capacity), 0);
	CHECK_EQ(usw_standby_space_create(&world->standbys), 0);
	CHECK_EQ(usw_standby_init(&world->standby, &world->standbys, world->area_fd, SLOTS), 0);
	CHECK_EQ(usw_equal_create(&world->equal, &world->vswap, &world->standbys), 0);
}

static void world_deinit(struct world *world)
{
	usw_equal_destroy(&world->equal);
	usw_standby_deinit(&world->standby);
	usw_standby_space_destroy(&world->standbys);
	usw_vswap_destroy(&world->vswap);
	usw_segments_destroy(&world->segments);
	munmap(world->slots, USW_STANDBY_BYTES);
	close(world->area_fd);
}

/** A page of its own in a slot, noted under this hash. */
static uint32_t put_in_slot(struct world *world, uint32_t slot, const void *page, uint64_t hash)
{
	uint32_t id;

	memcpy(world->slots + slot * USW_PAGE_BYTES, page, USW_PAGE_BYTES);
	CHECK_EQ(usw_vswap_alloc(&world->vswap, USW_BACKEND_MEMORY,
				 usw_place(world->standby.number, slot), hash, &id),
		 0);
	usw_equal_note(&world->equal, id, hash);
	return id;
}

static void make_object(struct world *world, uint32_t id, uint32_t slot)
{
	char object[USW_PAGE_BYTES];
	enum usw_codec codec;
	uint64_t place;
	uint32_t length = usw_codec_compress(&(struct usw_codec_hint){0},
					     world->slots + slot * USW_PAGE_BYTES, object, &codec);

	CHECK_EQ(usw_segments_append(&world->segments, USW_LOG_LOOSE, id, object, length, codec,
				     &place),
		 0);
	CHECK(usw_vswap_repoint(&world->vswap, id, USW_BACKEND_MEMORY,
				usw_place(world->standby.number, slot), USW_BACKEND_OBJECT, place));
}

static uint32_t count_of(const struct world *world, uint32_t id)
{
	return usw_word_count(usw_vswap_word(&world->vswap, id));
}

/** What eviction does with a page: share, or say that there is none to share with. */
static uint32_t share(struct world *world, const void *page, uint64_t hash)
{
	uint32_t id = usw_equal_find(&world->equal, &world->run, hash);

	if (id && !usw_equal_is(&world->equal, id, page)) {
		usw_vswap_put(&world->vswap, id);
		return USW_VSWAP_NONE;
	}
	return id;
}

/** Look a hash up in the table alone. */
static uint32_t find_noted(struct world *world, uint64_t hash)
{
	struct usw_equal_run nowhere = {0};

	return usw_equal_find(&world->equal, &nowhere, hash);
}

static void test_equal_pages_share(void)
{
	char pages[3][USW_PAGE_BYTES] __attribute__((aligned(8)));
	struct world world;

	world_init(&world, LINE_IDS, 8);
	CHECK_EQ(share(&world, pages[0], 7), USW_VSWAP_NONE); // nothing is noted yet
	for (uint32_t i = 0; i < 3; i++) {
		enum check_kind kind = CHECK_TINY + i;

		check_fill(pages[i], kind, 1);
		uint64_t hash = usw_codec_hash(pages[i], CHECK_SEED);
		uint32_t id = put_in_slot(&world, i, pages[i], hash);
		CHECK_EQ(share(&world, pages[i], hash), id); // from standby
		make_object(&world, id, i);
		memset(world.slots + i * USW_PAGE_BYTES, 0, USW_PAGE_BYTES);
		CHECK_EQ(share(&world, pages[i], hash), id); // from its object
		CHECK_EQ(count_of(&world, id), 3);
		usw_vswap_put(&world.vswap, id);
		usw_vswap_put(&world.vswap, id);
		CHECK_EQ(share(&world, pages[i], hash), id); // whoever is left
		CHECK_EQ(count_of(&world, id), 2);
	}
	CHECK_EQ(world.vswap.live_count, 3);
	CHECK_EQ(world.segments.live_count, 3);
	world_deinit(&world);
}

/** Two pages of one hash: not even an attacker who knows the seed gets one for the other. */
static void test_a_forged_hash_is_not_enough(void)
{
	char mine[USW_PAGE_BYTES] __attribute__((aligned(8)));
	char forged[USW_PAGE_BYTES] __attribute__((aligned(8)));
	struct world world;

	world_init(&world, LINE_IDS, 8);
	check_fill(mine, CHECK_TEXT, 1);
	uint64_t hash = usw_codec_hash(mine, CHECK_SEED);
	for (uint32_t byte = 0; byte < USW_PAGE_BYTES; byte += 273) {
		memcpy(forged, mine, USW_PAGE_BYTES);
		forged[byte] ^= 1;
		uint32_t id = put_in_slot(&world, 0, forged, hash);
		CHECK_EQ(share(&world, mine, hash), USW_VSWAP_NONE);
		CHECK_EQ(share(&world, forged, hash), id);
		make_object(&world, id, 0);
		CHECK_EQ(share(&world, mine, hash), USW_VSWAP_NONE);
		CHECK_EQ(share(&world, forged, hash), id);
		CHECK_EQ(count_of(&world, id), 3); // what was not equal left no reference
	}
	// The last of a hash is the one that is found.
	uint32_t id = put_in_slot(&world, 1, mine, hash);
	CHECK_EQ(share(&world, mine, hash), id);
	CHECK_EQ(share(&world, forged, hash), USW_VSWAP_NONE);
	world_deinit(&world);
}

static void test_what_is_out_of_date_is_not_believed(void)
{
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	struct world world;
	uint32_t id, other;

	world_init(&world, 2 * LINE_IDS, 8);
	check_fill(page, CHECK_TEXT, 1);
	uint64_t hash = usw_codec_hash(page, CHECK_SEED);

	id = put_in_slot(&world, 0, page, hash);
	usw_vswap_put(&world.vswap, id);
	CHECK_EQ(find_noted(&world, hash), USW_VSWAP_NONE); // free, and not collected
	usw_vswap_collect(&world.vswap);
	CHECK_EQ(usw_space_held_bytes(&world.vswap.space), 0);
	CHECK_EQ(find_noted(&world, hash), USW_VSWAP_NONE);    // its block was given back,
	CHECK_EQ(usw_space_held_bytes(&world.vswap.space), 0); // and a look does not bring it back

	// The ID is another page's by now, or a page of one word that is this hash.
	CHECK_EQ(usw_vswap_alloc(&world.vswap, USW_BACKEND_MEMORY, 0, ~hash, &other), 0);
	CHECK_EQ(other, id);
	CHECK_EQ(find_noted(&world, hash), USW_VSWAP_NONE);
	usw_vswap_put(&world.vswap, other);
	usw_vswap_collect(&world.vswap);
	CHECK_EQ(usw_vswap_alloc(&world.vswap, USW_BACKEND_SAME, 0, hash, &other), 0);
	CHECK_EQ(other, id);
	CHECK_EQ(find_noted(&world, hash), USW_VSWAP_NONE);
	usw_vswap_put(&world.vswap, other);

	// Another hash of the same line and the same tag.
	id = put_in_slot(&world, 0, page, hash);
	CHECK_EQ(find_noted(&world, hash ^ 1u << 30), USW_VSWAP_NONE);
	CHECK_EQ(count_of(&world, id), 1);
	world_deinit(&world);
}

static void test_what_is_damaged_or_on_a_disk_is_not_shared(void)
{
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	struct world world;
	struct usw_object object;

	world_init(&world, LINE_IDS, 8);
	check_fill(page, CHECK_RANDOM, 1);
	uint64_t hash = usw_codec_hash(page, CHECK_SEED);
	uint32_t id = put_in_slot(&world, 0, page, hash);
	make_object(&world, id, 0);
	uint64_t place = usw_word_place(usw_vswap_word(&world.vswap, id));
	CHECK(usw_segments_find(&world.segments, usw_place_group(place), usw_place_index(place),
				&object));
	((char *)(uintptr_t)object.bytes)[100] ^= 1;
	CHECK_EQ(share(&world, page, hash), USW_VSWAP_NONE);
	((char *)(uintptr_t)object.bytes)[100] ^= 1;
	CHECK_EQ(share(&world, page, hash), id);

	// As a demotion does, but for the disk: what was in RAM is gone.
	usw_segments_close_open(&world.segments);
	usw_segments_publish(&world.segments, usw_place_group(place), usw_where(1, 1, 0));
	CHECK_EQ(find_noted(&world, hash), USW_VSWAP_NONE);
	CHECK(!usw_equal_is(&world.equal, id, page));
	CHECK_EQ(count_of(&world, id), 2);
	world_deinit(&world);
}

/**
 * Counts end at 65,535 and are for forks, too: content of which there is very much is stored again.
 */
static void test_an_id_has_so_many_shares_at_most(void)
{
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	struct world world;

	world_init(&world, LINE_IDS, 8);
	check_fill(page, CHECK_TEXT, 1);
	uint64_t hash = usw_codec_hash(page, CHECK_SEED);
	uint32_t first = put_in_slot(&world, 0, page, hash);
	for (uint32_t count = 1; count < USW_EQUAL_SHARES_MAX; count++)
		CHECK_EQ(share(&world, page, hash), first);
	CHECK_EQ(share(&world, page, hash), USW_VSWAP_NONE);
	uint32_t second = put_in_slot(&world, 1, page, hash);
	CHECK_EQ(share(&world, page, hash), second);
	CHECK_EQ(count_of(&world, first), USW_EQUAL_SHARES_MAX);
	CHECK_EQ(count_of(&world, second), 2);
	world_deinit(&world);
}

/** IDs in a row of which nothing is stored: what is found is looked at by the count. */
static uint32_t alloc_row(struct world *world, uint32_t count, uint64_t seed)
{
	uint32_t first = 0;

	for (uint32_t i = 0; i < count; i++) {
		uint64_t state = seed + i;
		uint64_t hash = check_random(&state);
		uint32_t id;

		CHECK_EQ(usw_vswap_alloc(&world->vswap, USW_BACKEND_MEMORY, 0, hash, &id), 0);
		usw_equal_note(&world->equal, id, hash);
		usw_equal_fit(&world->equal);
		first = first ? first : id;
	}
	return first;
}

/** Find the pages of a row again, but for one in `changed_every`. Returns how many were found. */
static uint32_t find_row(struct world *world, uint32_t count, uint64_t seed, uint32_t first,
			 uint32_t changed_every)
{
	uint32_t found = 0;

	world->run = (struct usw_equal_run){0};
	for (uint32_t i = 0; i < count; i++) {
		uint64_t state = seed + i;
		uint64_t hash = check_random(&state);
		bool is_changed = changed_every && i % changed_every == 0;
		uint32_t id = usw_equal_find(&world->equal, &world->run, is_changed ? ~hash : hash);

		if (!id)
			continue;
		CHECK(!is_changed);
		CHECK_EQ(id, first + i);
		CHECK_EQ(count_of(world, id), 2);
		usw_vswap_put(&world->vswap, id);
		found++;
	}
	return found;
}

/**
 * The table remembers one page in 32; copies of whole runs are found, changed here and there or
 * not.
 */
static void test_runs_are_found_by_few_entries(void)
{
	const uint32_t rows = 16, length = 4096;
	uint32_t found = 0, found_changed = 0;
	struct world world;
	uint32_t first[16];

	world_init(&world, 2 * rows * length, 8);
	for (uint32_t row = 0; row < rows; row++)
		first[row] = alloc_row(&world, length, (uint64_t)row << 32);
	for (uint32_t row = 0; row < rows; row++) {
		found += find_row(&world, length, (uint64_t)row << 32, first[row], 0);
		found_changed += find_row(&world, length, (uint64_t)row << 32, first[row], 8);
	}
	CHECK_THAT(found, >=, rows * length * 4 / 5);
	CHECK_THAT(found_changed, >=, rows * length * 2 / 3);
	CHECK_EQ(world.vswap.live_count, rows * length);
	world_deinit(&world);
}

/** What comes again and again is hardly ever forgotten for what comes once. */
static void test_what_was_found_before_lasts(void)
{
	const uint32_t count = 50, rounds = 100;
	struct world world;
	uint32_t forgotten = 0;

	world_init(&world, 128 * LINE_IDS, 8);
	alloc_row(&world, count, 1);
	for (uint32_t round = 1; round <= rounds; round++) {
		for (uint32_t i = 0; i < count; i++) {
			uint64_t state = 1 + i;
			uint32_t id = find_noted(&world, check_random(&state));

			if (id)
				usw_vswap_put(&world.vswap, id);
			else
				alloc_row(&world, 1, 1 + i); // stored and noted once more
			forgotten += id == USW_VSWAP_NONE;
		}
		alloc_row(&world, 3 * count, (uint64_t)round << 32);
	}
	CHECK_THAT(forgotten, <=, count * rounds / 50);
	world_deinit(&world);
}

static void check_size(struct world *world)
{
	uint64_t bytes = usw_equal_held_bytes(&world->equal);

	CHECK_THAT(bytes, <=, world->vswap.live_count / 4 + USW_PAGE_BYTES);
	CHECK_THAT(usw_space_held_bytes(&world->equal.space), <=, bytes);
}

static void test_the_table_is_a_quarter_of_a_byte_an_id(void)
{
	const uint32_t most = 256 * LINE_IDS;
	struct world world;

	world_init(&world, most, 8);
	usw_equal_fit(&world.equal);
	CHECK_EQ(usw_equal_held_bytes(&world.equal), 0);
	for (uint32_t i = 0; i < most / 2 - LINE_IDS; i += LINE_IDS) {
		alloc_row(&world, LINE_IDS, (uint64_t)i << 32);
		check_size(&world);
	}
	alloc_row(&world, most / 2, 1);
	CHECK_THAT(usw_equal_held_bytes(&world.equal), >=, most / 8);
	for (uint32_t id = 1; id < most - LINE_IDS; id++) {
		usw_vswap_put(&world.vswap, id);
		if (id % 64 == 0)
			usw_vswap_collect(&world.vswap);
		usw_equal_fit(&world.equal);
		// It is late on the way down: four times as much.
		CHECK_THAT(usw_equal_held_bytes(&world.equal), <=,
			   world.vswap.live_count + 2 * USW_PAGE_BYTES);
	}
	for (uint32_t id = most - LINE_IDS; id < most; id++)
		if (usw_vswap_peek(&world.vswap, id))
			usw_vswap_put(&world.vswap, id);
	usw_vswap_collect(&world.vswap);
	usw_equal_fit(&world.equal);
	CHECK_EQ(world.vswap.live_count, 0);
	CHECK_EQ(usw_equal_held_bytes(&world.equal), 0);
	CHECK_EQ(usw_space_held_bytes(&world.equal.space), 0);
	CHECK_EQ(usw_space_held_bytes(&world.vswap.space), 0);
	world_deinit(&world);
}

static void test_growing_forgets_nothing(void)
{
	struct world world;
	const uint32_t many = 256 * LINE_IDS;

	world_init(&world, 2 * many, 8);
	uint32_t first = alloc_row(&world, 1, 5);
	uint64_t state = 5;
	uint64_t hash = check_random(&state);
	CHECK_EQ(find_noted(&world, hash), first); // found before: it lasts
	for (uint32_t i = 1; i < many; i++) {
		uint32_t id;

		CHECK_EQ(usw_vswap_alloc(&world.vswap, USW_BACKEND_ZERO, 0, 0, &id), 0);
		usw_equal_fit(&world.equal);
	}
	CHECK_EQ(usw_equal_held_bytes(&world.equal), many / 4);
	CHECK_EQ(find_noted(&world, hash), first);
	world_deinit(&world);
}

// --- Threads ------------------------------------------------------------------------------------

#define HOLDERS 2u
#define PLACES 256u
#define CONTENTS 400u
#define OWNER_ROUNDS 20000u

/** References by content, given out by the owner, looked at and put by holders. */
struct exchange {
	struct world world;
	_Atomic uint64_t at[PLACES]; /* content << 32 | ID; 0: empty */
	_Atomic bool done;
	char contents[CONTENTS][USW_PAGE_BYTES] __attribute__((aligned(8)));
};

/** Only for holders: slots are read while the owner may fill them anew. */
static void check_content(struct exchange *exchange, uint32_t id, uint32_t content)
{
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	struct world *world = &exchange->world;
	const char *standby = usw_standby_page(&world->standbys, world->standby.number, 0);

	CHECK_EQ(check_read(&world->vswap, standby, id, page), CHECK_READ_RIGHT);
	CHECK(memcmp(page, exchange->contents[content], USW_PAGE_BYTES) == 0);
}

static void *holder_main(void *argument)
{
	struct exchange *exchange = argument;
	uint64_t state = (uintptr_t)&state;

	while (!atomic_load(&exchange->done)) {
		uint32_t place = check_random(&state) % PLACES;
		uint64_t mine = atomic_exchange(&exchange->at[place], 0);

		if (!mine) {
			sched_yield();
			continue;
		}
		check_content(exchange, (uint32_t)mine, (uint32_t)(mine >> 32));
		usw_vswap_put(&exchange->world.vswap, (uint32_t)mine);
	}
	return NULL;
}

/** Drain the oldest slots into objects, as the reclaim thread does. */
static void drain(struct world *world, uint32_t keep)
{
	struct usw_standby *standby = &world->standby;

	while (usw_standby_count(standby) > keep) {
		uint32_t slot = standby->tail % standby->capacity;
		uint32_t id = standby->owner[slot];
		uint64_t word = id ? usw_vswap_word(&world->vswap, id) : 0;
		uint64_t place = usw_place(standby->number, slot);
		char object[USW_PAGE_BYTES];
		enum usw_codec codec;
		uint64_t new_place;

		if (usw_word_backend(word) == USW_BACKEND_MEMORY && usw_word_place(word) == place) {
			uint32_t length = usw_codec_compress(
				&(struct usw_codec_hint){0},
				usw_standby_page(&world->standbys, standby->number, slot), object,
				&codec);

			CHECK_EQ(usw_segments_append(&world->segments, USW_LOG_LOOSE, id, object,
						     length, codec, &new_place),
				 0);
			if (!usw_vswap_repoint(&world->vswap, id, USW_BACKEND_MEMORY, place,
					       USW_BACKEND_OBJECT, new_place))
				usw_segments_release(&world->segments, usw_place_group(new_place),
						     usw_place_index(new_place));
		}
		standby->tail++;
	}
}

USW_OPTIMISTIC static void fill_slot(struct world *world, uint32_t slot, const char *content)
{
	volatile uint64_t *to = (volatile uint64_t *)(world->slots + slot * USW_PAGE_BYTES);
	const uint64_t *from = (const uint64_t *)content;

	for (size_t i = 0; i < CHECK_PAGE_WORDS; i++)
		to[i] = from[i];
}

/** One page leaves: its ID, shared or new. */
static uint32_t evict(struct exchange *exchange, uint32_t content, bool *ret_shared)
{
	struct world *world = &exchange->world;
	uint64_t hash = usw_codec_hash(exchange->contents[content], CHECK_SEED);
	int slot = usw_standby_take(&world->standby, 1);
	uint32_t id;

	CHECK(slot >= 0);
	fill_slot(world, (uint32_t)slot, exchange->contents[content]);
	const char *page =
		usw_standby_page(&world->standbys, world->standby.number, (uint32_t)slot);
	id = share(world, page, hash);
	*ret_shared = id != USW_VSWAP_NONE;
	if (*ret_shared)
		return id;
	CHECK_EQ(usw_vswap_alloc(&world->vswap, USW_BACKEND_MEMORY,
				 usw_place(world->standby.number, (uint32_t)slot), hash, &id),
		 0);
	world->standby.owner[slot] = id;
	usw_equal_note(&world->equal, id, hash);
	return id;
}

static void own(struct exchange *exchange)
{
	struct world *world = &exchange->world;
	uint64_t state = 1;
	uint32_t shared = 0;
	bool is_shared;

	for (uint32_t round = 0; round < OWNER_ROUNDS; round++) {
		uint32_t content = check_random(&state) % CONTENTS;
		uint32_t place = check_random(&state) % PLACES;
		uint32_t id = evict(exchange, content, &is_shared);
		uint64_t before =
			atomic_exchange(&exchange->at[place], (uint64_t)content << 32 | id);

		shared += is_shared;
		if (before)
			usw_vswap_put(&world->vswap, (uint32_t)before);
		drain(world, 128);
		if (round % 8 == 0)
			usw_vswap_collect(&world->vswap);
		if (round % 64 == 0)
			usw_compact_one(&world->vswap);
		if (round % 128 == 0)
			usw_segments_reap(&world->segments);
		usw_equal_fit(&world->equal);
	}
	CHECK_THAT(shared, >, 0);
}

static void test_holders_come_and_go_meanwhile(void)
{
	static struct exchange exchange;
	pthread_t threads[HOLDERS];

	world_init(&exchange.world, 16 * LINE_IDS, 64);
	for (uint32_t i = 0; i < CONTENTS; i++)
		check_fill(exchange.contents[i], i % 2 ? CHECK_TEXT : CHECK_RANDOM, i);
	for (uint32_t i = 0; i < HOLDERS; i++)
		CHECK(pthread_create(&threads[i], NULL, holder_main, &exchange) == 0);
	own(&exchange);
	atomic_store(&exchange.done, true);
	for (uint32_t i = 0; i < HOLDERS; i++)
		pthread_join(threads[i], NULL);
	for (uint32_t i = 0; i < PLACES; i++) {
		uint64_t left = atomic_load(&exchange.at[i]);

		if (!left)
			continue;
		check_content(&exchange, (uint32_t)left, (uint32_t)(left >> 32));
		usw_vswap_put(&exchange.world.vswap, (uint32_t)left);
	}
	CHECK_EQ(exchange.world.vswap.live_count, 0);
	CHECK_EQ(exchange.world.segments.live_count, 0);
	usw_segments_check(&exchange.world.segments);
	world_deinit(&exchange.world);
}

int main(void)
{
	check_start(200);
	test_equal_pages_share();
	test_a_forged_hash_is_not_enough();
	test_what_is_out_of_date_is_not_believed();
	test_what_is_damaged_or_on_a_disk_is_not_shared();
	test_an_id_has_so_many_shares_at_most();
	test_runs_are_found_by_few_entries();
	test_what_was_found_before_lasts();
	test_the_table_is_a_quarter_of_a_byte_an_id();
	test_growing_forgets_nothing();
	test_holders_come_and_go_meanwhile();
	return 0;
}
