// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: what is kept about an evicted page costs at most 32 bytes (8 for its word, 16 for its
 * descriptor, 6 and a half for its object, a quarter for the table that finds equal pages), and
 * everything goes when the pages go. Method: evict 128 MiB of contiguous pages of each kind, all
 * the way into objects, and add up what page map, descriptors, tables and the table of segments
 * hold. The bytes of the objects themselves are not meant.
 */

#include "check.h"
#include "equal.h"
#include "pagemap.h"

#define PAGES 32768u
#define FIRST_ADDRESS ((uint64_t)0x7f0000000000)

struct world {
	struct usw_segments segments;
	struct usw_vswap vswap;
	struct usw_nodes nodes;
	struct usw_equal equal;
	struct usw_pagemap map;
};

static void world_init(struct world *world)
{
	*world = (struct world){.map.nodes = &world->nodes};
	CHECK_EQ(usw_segments_create(&world->segments, 256), 0);
	CHECK_EQ(usw_vswap_create(&world->vswap, &world->segments, 2 * PAGES), 0);
	CHECK_EQ(usw_nodes_create(&world->nodes, 1024), 0);
	CHECK_EQ(usw_equal_create(&world->equal, &world->vswap, NULL), 0);
}

static void world_deinit(struct world *world)
{
	usw_equal_destroy(&world->equal);
	usw_nodes_destroy(&world->nodes);
	usw_vswap_destroy(&world->vswap);
	usw_segments_destroy(&world->segments);
}

static uint32_t store(struct world *world, enum check_kind kind, uint64_t seed)
{
	char page[USW_PAGE_BYTES] __attribute__((aligned(8)));
	char object[USW_PAGE_BYTES];
	enum usw_codec codec;
	uint64_t word;
	uint64_t place;
	uint32_t id;

	check_fill(page, kind, seed);
	if (usw_codec_is_repeated(page, &word)) {
		CHECK_EQ(usw_vswap_alloc(&world->vswap, USW_BACKEND_SAME, 0, word, &id), 0);
		return id;
	}
	uint64_t hash = usw_codec_hash(page, CHECK_SEED);
	CHECK_EQ(usw_vswap_alloc(&world->vswap, USW_BACKEND_MEMORY, 0, hash, &id), 0);
	usw_equal_note(&world->equal, id, hash);
	usw_equal_fit(&world->equal);
	uint32_t length = usw_codec_compress(&(struct usw_codec_hint){0}, page, object, &codec);
	CHECK_EQ(usw_segments_append(&world->segments, USW_LOG_LOOSE, id, object, length, codec,
				     &place),
		 0);
	CHECK(usw_vswap_repoint(&world->vswap, id, USW_BACKEND_MEMORY, 0, USW_BACKEND_OBJECT,
				place));
	return id;
}

static void evict(struct world *world, uint64_t address, enum check_kind kind)
{
	uint64_t evicting = usw_page_make(USW_PAGE_EVICTING, 0, 0, 0);
	usw_page_word *word = usw_pagemap_make(&world->map, address);

	CHECK(word);
	usw_page_transition(word, 0, evicting);
	usw_page_transition(word, evicting,
			    usw_page_make(USW_PAGE_EVICTED, 0,
					  store(world, kind, address >> USW_PAGE_SHIFT), 0));
}

static void forget(struct world *world, uint64_t start, uint64_t end)
{
	uint64_t address = start;
	usw_page_word *word;

	for (; (word = usw_pagemap_next(&world->map, &address, end)); address += USW_PAGE_BYTES) {
		uint64_t before = atomic_load(word);

		usw_page_transition(word, before, 0);
		usw_vswap_put(&world->vswap, usw_page_id(before));
	}
	usw_pagemap_prune(&world->map, start, end);
	usw_vswap_collect(&world->vswap);
	usw_segments_reap(&world->segments);
	usw_equal_fit(&world->equal);
}

static uint64_t metadata_bytes(struct world *world)
{
	return usw_nodes_held_bytes(&world->nodes) + usw_vswap_held_bytes(&world->vswap) +
	       usw_segments_metadata_bytes(&world->segments) + usw_equal_held_bytes(&world->equal);
}

/** What is said to be held is what the kernel counts. */
static uint64_t kernel_bytes(const struct world *world)
{
	return usw_space_held_bytes(&world->nodes.space) +
	       usw_space_held_bytes(&world->vswap.space) +
	       usw_space_held_bytes(&world->segments.tables) +
	       usw_space_held_bytes(&world->segments.headers) +
	       usw_space_held_bytes(&world->equal.space);
}

static void test_dense_eviction(enum check_kind kind, const char *name)
{
	uint64_t end = FIRST_ADDRESS + (uint64_t)PAGES * USW_PAGE_BYTES;
	struct world world;

	world_init(&world);
	for (uint64_t address = FIRST_ADDRESS; address < end; address += USW_PAGE_BYTES)
		evict(&world, address, kind);
	uint64_t bytes = metadata_bytes(&world);
	printf("%-8s %.2f bytes a page: page map %.2f, descriptors %.2f, objects %.2f, equal %.2f\n",
	       name, (double)bytes / PAGES, (double)usw_nodes_held_bytes(&world.nodes) / PAGES,
	       (double)usw_vswap_held_bytes(&world.vswap) / PAGES,
	       (double)usw_segments_metadata_bytes(&world.segments) / PAGES,
	       (double)usw_equal_held_bytes(&world.equal) / PAGES);
	CHECK_THAT(bytes, >=, kernel_bytes(&world));
	CHECK_THAT(bytes, <=, kernel_bytes(&world) + USW_PAGE_BYTES); // an empty table of segments
	CHECK_THAT(bytes, <=, 32 * PAGES);

	forget(&world, FIRST_ADDRESS, end);
	CHECK_EQ(world.map.root, 0);
	CHECK_EQ(world.vswap.live_count, 0);
	CHECK_EQ(usw_nodes_held_bytes(&world.nodes), 0);
	CHECK_EQ(usw_vswap_held_bytes(&world.vswap), 0);
	CHECK_EQ(usw_equal_held_bytes(&world.equal), 0);
	CHECK_EQ(world.segments.live_bytes, 0);
	CHECK_THAT(world.segments.used_segments, <=, 2); // the open ones
	CHECK_THAT(usw_space_held_bytes(&world.nodes.space), <=, 64 * USW_PAGE_BYTES); // kept warm
	world_deinit(&world);
}

int main(void)
{
	check_start(100);
	test_dense_eviction(CHECK_REPEATED, "repeated");
	test_dense_eviction(CHECK_TINY, "tiny");
	test_dense_eviction(CHECK_TEXT, "text");
	test_dense_eviction(CHECK_RANDOM, "random");
	return 0;
}
