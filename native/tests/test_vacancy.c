// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: an object that fills a vacancy disturbs none beside it and goes only where it may, and
 * random replacement leaves little to be moved.
 * Method: known objects of many sizes in closed segments; vacancies that stop being any after they
 * were found; a long churn against a table of what must be there.
 */

#include "check.h"
#include "vacancy.h"

#define SEGMENTS 24u
#define OBJECTS 2000u

struct world {
	struct usw_segments segments;
	struct usw_vacancies vacancies;
	uint64_t places[OBJECTS];
	uint32_t owners[OBJECTS];
	uint32_t lengths[OBJECTS];
};

static struct world world;

static void fill_object(unsigned char *bytes, uint32_t owner, uint32_t length)
{
	for (uint32_t i = 0; i < length; i++)
		bytes[i] = (unsigned char)(owner * 31 + i * 7 + (i >> 8));
}

/** Entries of all segments, live or dead: one more after each append, as many after a refill. */
static uint32_t count_entries(void)
{
	uint32_t entries = 0;

	for (uint32_t segment = 1; segment < world.segments.high_water; segment++) {
		const struct usw_segment *h = usw_segments_header(&world.segments, segment);

		if (h->state != USW_SEGMENT_FREE)
			entries += h->object_count;
	}
	return entries;
}

/** Store an object as number `i`. Returns whether it filled a vacancy. */
static bool store(uint32_t i, uint32_t owner, uint32_t length)
{
	unsigned char bytes[USW_PAGE_BYTES];
	uint32_t before = count_entries();

	fill_object(bytes, owner, length);
	CHECK_EQ(usw_vacancies_store(&world.vacancies, &world.segments, owner, bytes, length,
				     USW_CODEC_LZ4, &world.places[i]),
		 0);
	world.owners[i] = owner;
	world.lengths[i] = length;
	return count_entries() == before;
}

static void release(uint32_t i)
{
	usw_segments_release(&world.segments, usw_place_group(world.places[i]),
			     usw_place_index(world.places[i]));
	world.owners[i] = 0;
}

static void check_all(void)
{
	unsigned char bytes[USW_PAGE_BYTES];
	struct usw_object object;

	usw_segments_check(&world.segments);
	for (uint32_t i = 0; i < OBJECTS; i++) {
		if (!world.owners[i])
			continue;
		CHECK(usw_segments_find(&world.segments, usw_place_group(world.places[i]),
					usw_place_index(world.places[i]), &object));
		CHECK_EQ(object.owner_id, world.owners[i]);
		CHECK_EQ(object.length_bytes, world.lengths[i]);
		fill_object(bytes, world.owners[i], world.lengths[i]);
		CHECK(memcmp(object.bytes, bytes, world.lengths[i]) == 0);
	}
}

/** Lengths from 1000 to 4000 bytes in no order, 40 different ones of them. */
static uint32_t length_of(uint64_t random)
{
	return 1000 + (uint32_t)(random % 40) * 75;
}

static void begin(bool is_wanted)
{
	memset(&world, 0, sizeof(world));
	CHECK_EQ(usw_segments_create(&world.segments, SEGMENTS), 0);
	world.vacancies.is_wanted = is_wanted;
	for (uint32_t i = 0; i < OBJECTS; i++)
		CHECK(!store(i, i + 1, length_of(i * 7)));
}

static void end(void)
{
	check_all();
	usw_segments_destroy(&world.segments);
}

static void test_a_dead_entry_takes_an_object_of_its_size(void)
{
	begin(true);
	uint64_t used_bytes = world.segments.used_bytes;

	for (uint32_t i = 0; i < OBJECTS / 2; i += 10)
		release(i);
	for (uint32_t i = 0; i < OBJECTS / 2; i += 10) {
		uint32_t stored = usw_stored_bytes(length_of(i * 7));

		// As long as it was, or shorter by less than a unit.
		CHECK(store(i, i + 5000, stored - (i / 10) % USW_OBJECT_ALIGN));
	}
	CHECK_EQ(world.segments.used_bytes, used_bytes);
	end();
}

/** Replace every tenth object by one that is so much longer: none fills a vacancy. */
static void check_none_fills(uint32_t longer_bytes)
{
	for (uint32_t i = 0; i < OBJECTS / 2; i += 10)
		release(i);
	for (uint32_t i = 0; i < OBJECTS / 2; i += 10)
		CHECK(!store(i, i + 5000, length_of(i * 7) + longer_bytes));
}

static void test_only_the_same_size_fits(void)
{
	begin(true);
	check_none_fills(20); // as long as no other object, either
	end();
}

static void test_nothing_is_filled_unless_wanted(void)
{
	begin(false);
	check_none_fills(0);
	end();
}

/** A vacancy that was found must not be filled when its segment is not to be written any more. */
static void test_a_known_place_is_looked_at_again(void)
{
	struct usw_segment *h;

	begin(true);
	uint32_t segment = usw_place_group(world.places[0]);
	h = usw_segments_header(&world.segments, segment);
	for (uint32_t i = 0; i < 300; i += 10)
		release(i);
	CHECK(store(0, 5000, length_of(0))); // by now all of them are known
	CHECK_EQ(usw_place_group(world.places[0]), segment);

	h->is_moving = true;
	CHECK(!store(10, 5001, length_of(70)));
	h->is_moving = false;
	h->is_parked = true;
	CHECK(!store(20, 5002, length_of(140)));
	h->is_parked = false;

	// All of it dies, and it begins anew with others.
	for (uint32_t i = 0; i < OBJECTS; i++)
		if (world.owners[i] && usw_place_group(world.places[i]) == segment)
			release(i);
	usw_segments_reap(&world.segments);
	CHECK_EQ(h->state, USW_SEGMENT_FREE);
	for (uint32_t i = 30; i < 300; i += 10)
		CHECK(!store(i, i + 5000, length_of(i * 7)));
	end();
}

/** Where more than a quarter is dead it is better emptied. */
static void test_a_sparse_segment_is_left_to_compaction(void)
{
	begin(true);
	uint32_t segment = usw_place_group(world.places[0]);

	for (uint32_t i = 0; i < OBJECTS; i++)
		if (i % 3 && usw_place_group(world.places[i]) == segment)
			release(i);
	for (uint32_t i = 0; i < OBJECTS; i++)
		if (!world.owners[i])
			CHECK(!store(i, i + 5000, length_of(i * 7)));
	CHECK_EQ(usw_segments_emptiest(&world.segments), segment);
	end();
}

/** What still lives in the emptiest segment goes elsewhere. Returns how many objects that are. */
static uint32_t empty_one(void)
{
	uint32_t segment = usw_segments_emptiest(&world.segments);
	uint32_t moved = 0;

	for (uint32_t i = 0; segment && i < OBJECTS; i++) {
		if (usw_place_group(world.places[i]) != segment)
			continue;
		uint32_t owner = world.owners[i];

		release(i);
		world.vacancies.is_wanted = false;
		store(i, owner, world.lengths[i]);
		moved++;
	}
	usw_segments_reap(&world.segments);
	return moved;
}

/**
 * Replace objects at random, with no more garbage than an eighth. Returns how many were moved for
 * it.
 */
static uint32_t churn(bool is_wanted)
{
	uint64_t state = 1;
	uint32_t moved = 0;

	begin(is_wanted);
	world.segments.worth_share = 8;
	for (uint32_t round = 0; round < 20 * OBJECTS; round++) {
		uint32_t i = (uint32_t)(check_random(&state) % OBJECTS);

		release(i);
		world.vacancies.is_wanted = is_wanted;
		store(i, round + 10000, length_of(check_random(&state)));
		while (usw_segments_garbage_bytes(&world.segments) >
		       world.segments.used_bytes / 8 + USW_SEGMENT_BYTES)
			moved += empty_one();
	}
	end();
	return moved;
}

static void test_random_replacement_moves_little(void)
{
	uint32_t moved = churn(true);

	CHECK_THAT(moved, <, churn(false) / 20);
}

int main(void)
{
	check_start(60);
	test_a_dead_entry_takes_an_object_of_its_size();
	test_only_the_same_size_fits();
	test_nothing_is_filled_unless_wanted();
	test_a_known_place_is_looked_at_again();
	test_a_sparse_segment_is_left_to_compaction();
	test_random_replacement_moves_little();
	return 0;
}
