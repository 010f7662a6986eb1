// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a page map remembers exactly what was put into it, costs nothing for what was not, and
 * lets no page change its state in a way that is not drawn in pagemap.h.
 * Method: compare with a plain array over sparse addresses; try every pair of states; several
 * targets that share one space of nodes from several threads.
 */

#include <pthread.h>

#include "check.h"
#include "pagemap.h"

#define ADDRESS_END ((uint64_t)1 << 48)
#define NODE_BYTES ((uint64_t)USW_PAGE_BYTES)

static void test_every_transition(void)
{
	static const struct {
		enum usw_page_state before, after;
	} legal[] = {
		{USW_PAGE_NONE, USW_PAGE_NONE},         {USW_PAGE_NONE, USW_PAGE_EVICTING},
		{USW_PAGE_RESIDENT, USW_PAGE_RESIDENT}, {USW_PAGE_RESIDENT, USW_PAGE_EVICTING},
		{USW_PAGE_RESIDENT, USW_PAGE_NONE},     {USW_PAGE_EVICTING, USW_PAGE_NONE},
		{USW_PAGE_EVICTING, USW_PAGE_RESIDENT}, {USW_PAGE_EVICTING, USW_PAGE_EVICTED},
		{USW_PAGE_EVICTED, USW_PAGE_RESIDENT},  {USW_PAGE_EVICTED, USW_PAGE_POISONED},
		{USW_PAGE_EVICTED, USW_PAGE_NONE},      {USW_PAGE_POISONED, USW_PAGE_NONE},
	};

	for (unsigned int before = 0; before < 8; before++) {
		for (unsigned int after = 0; after < 8; after++) {
			bool is_legal = false;
			uint64_t from = usw_page_make((enum usw_page_state)before, 1, 9, 2);
			uint64_t to = usw_page_make((enum usw_page_state)after, 3, 8, 4);
			usw_page_word word = from;

			for (size_t i = 0; i < sizeof(legal) / sizeof(legal[0]); i++)
				is_legal |= legal[i].before == before && legal[i].after == after;
			if (!is_legal) {
				CHECK_ABORTS(usw_page_transition(&word, from, to));
				continue;
			}
			usw_page_transition(&word, from, to);
			CHECK_EQ(atomic_load(&word), to);
		}
	}
}

static void test_transitions_that_lie_abort(void)
{
	uint64_t evicting = usw_page_make(USW_PAGE_EVICTING, 0, 9, 0);
	usw_page_word word = evicting;

	// An evicted page must have an ID, and the word must be what the caller thinks it is.
	CHECK_ABORTS(
		usw_page_transition(&word, evicting, usw_page_make(USW_PAGE_EVICTED, 0, 0, 1)));
	CHECK_ABORTS(usw_page_transition(&word, usw_page_make(USW_PAGE_EVICTING, 0, 8, 0),
					 usw_page_make(USW_PAGE_EVICTED, 0, 9, 1)));
}

static void test_words_keep_their_fields(void)
{
	static const uint32_t ids[] = {0, 1, 0x80000000, UINT32_MAX};

	for (uint32_t state = 0; state <= USW_PAGE_POISONED; state++) {
		for (uint32_t heat = 0; heat <= USW_HEAT_MAX; heat++) {
			for (size_t i = 0; i < 4; i++) {
				uint64_t word = usw_page_make((enum usw_page_state)state, heat,
							      ids[i], 0xabcdef);

				CHECK_EQ(usw_page_state(word), state);
				CHECK_EQ(usw_page_heat(word), heat);
				CHECK_EQ(usw_page_id(word), ids[i]);
				CHECK_EQ(usw_page_stamp(word), 0xabcdef);
				CHECK_EQ(usw_page_laps(word), 0);
				CHECK_EQ(usw_page_without_id(word),
					 usw_page_make((enum usw_page_state)state, heat, 0,
						       0xabcdef));
			}
		}
	}
	// A stamp is a clock that wraps around: its upper bits go nowhere else.
	CHECK_EQ(usw_page_make(USW_PAGE_NONE, 0, 0, 0xff000000), 0);
}

static void test_heat_earns_laps_that_are_counted(void)
{
	static const uint32_t laps[] = {0, 1, 3, 7};

	for (uint32_t heat = 0; heat <= USW_HEAT_MAX; heat++) {
		uint64_t word = usw_page_with_laps(
			usw_page_make(USW_PAGE_RESIDENT, heat, UINT32_MAX, 0xfffffe));

		for (uint32_t left = laps[heat]; left; left--) {
			CHECK_EQ(usw_page_laps(word), left);
			word = usw_page_pass(word, 0xffffff + left);
			CHECK_EQ(usw_page_age(word, 0x1000001 + left), 2);
		}
		CHECK_EQ(usw_page_laps(word), 0);
		CHECK_EQ(usw_page_heat(word), heat);
		CHECK_EQ(usw_page_id(word), UINT32_MAX);
		CHECK_EQ(usw_page_state(word), USW_PAGE_RESIDENT);
	}
	// The clock goes round: a word from before that is not young for ever.
	CHECK_EQ(usw_page_age(usw_page_make(USW_PAGE_RESIDENT, 0, 0, 0xfffff0), 0x1000010), 0x20);
}

/** Addresses at the edges of leaves and nodes, and some in between. */
static uint32_t make_addresses(uint64_t *addresses, uint32_t capacity)
{
	uint64_t state = 7;
	uint32_t count = 0;

	for (uint32_t shift = 12; shift < 48; shift += 9) {
		addresses[count++] = ((uint64_t)1 << shift) - USW_PAGE_BYTES;
		addresses[count++] = (uint64_t)1 << shift;
		addresses[count++] = ((uint64_t)1 << 47) + ((uint64_t)1 << shift);
	}
	addresses[count++] = ADDRESS_END - USW_PAGE_BYTES;
	// The others in pairs of neighbours, so that the end of a range has a page behind it.
	while (count + 2 <= capacity) {
		uint64_t address =
			check_random(&state) % (ADDRESS_END >> check_random(&state) % 36);

		addresses[count++] = usw_page_floor(address);
		addresses[count++] = (usw_page_floor(address) + USW_PAGE_BYTES) % ADDRESS_END;
	}
	return count;
}

static int compare_addresses(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a;
	uint64_t right = *(const uint64_t *)b;

	return left < right ? -1 : left > right;
}

#define ADDRESSES 400u

struct plain {
	uint64_t addresses[ADDRESSES]; /* ascending, no two equal */
	bool mapped[ADDRESSES];
	uint32_t count;
};

static uint64_t word_of(uint64_t address)
{
	return usw_page_make(USW_PAGE_EVICTED, 0, (uint32_t)(address >> 12) | 1, 0);
}

static void plain_init(struct plain *plain)
{
	uint32_t count = make_addresses(plain->addresses, ADDRESSES);

	qsort(plain->addresses, count, sizeof(uint64_t), compare_addresses);
	plain->count = 0;
	for (uint32_t i = 0; i < count; i++)
		if (plain->count == 0 || plain->addresses[plain->count - 1] != plain->addresses[i])
			plain->addresses[plain->count++] = plain->addresses[i];
	memset(plain->mapped, 0, sizeof(plain->mapped));
}

/** Everything [start, end) holds, and nothing else, is found in order; and each page by itself. */
static void check_like(const struct plain *plain, const struct usw_pagemap *map, uint64_t start,
		       uint64_t end)
{
	uint64_t address = start;

	for (uint32_t i = 0; i < plain->count; i++) {
		usw_page_word *word = usw_pagemap_find(map, plain->addresses[i]);

		CHECK_EQ(word && *word, plain->mapped[i]);
		if (!plain->mapped[i] || plain->addresses[i] < start || plain->addresses[i] >= end)
			continue;
		usw_page_word *next = usw_pagemap_next(map, &address, end);
		CHECK(next == word);
		CHECK_EQ(address, plain->addresses[i]);
		CHECK_EQ(*word, word_of(address));
		address += USW_PAGE_BYTES;
	}
	CHECK(!usw_pagemap_next(map, &address, end));
}

static void test_like_a_plain_array(void)
{
	static struct plain plain;
	struct usw_nodes nodes;
	uint64_t state = 11;

	CHECK_EQ(usw_nodes_create(&nodes, 4096), 0);
	struct usw_pagemap map = {.nodes = &nodes};
	plain_init(&plain);
	CHECK_EQ(usw_pagemap_count(&map), 0);
	CHECK_EQ(usw_nodes_held_bytes(&nodes), 0);
	for (unsigned int round = 0; round < 300; round++) {
		uint32_t first = (uint32_t)(check_random(&state) % plain.count);
		uint32_t last = first + (uint32_t)(check_random(&state) % (plain.count - first));
		uint64_t start = plain.addresses[first];
		uint64_t end = plain.addresses[last] + USW_PAGE_BYTES;
		bool mapping = check_random(&state) % 2;
		uint64_t expected = 0;

		for (uint32_t i = first; i <= last; i++) {
			usw_page_word *word = mapping ? usw_pagemap_make(&map, plain.addresses[i])
						      : usw_pagemap_find(&map, plain.addresses[i]);
			CHECK(word || !mapping);
			if (word)
				atomic_store(word, mapping ? word_of(plain.addresses[i]) : 0);
			plain.mapped[i] = mapping;
		}
		usw_pagemap_prune(&map, start, end);
		check_like(&plain, &map, start, end);
		for (uint32_t i = 0; i < plain.count; i++)
			expected += plain.mapped[i];
		CHECK_EQ(usw_pagemap_count(&map), expected);
	}
	check_like(&plain, &map, 0, ADDRESS_END);
	check_like(&plain, &map, 0, UINT64_MAX);

	for (uint32_t i = 0; i < plain.count; i++) {
		usw_page_word *word = usw_pagemap_find(&map, plain.addresses[i]);
		if (word)
			atomic_store(word, 0);
	}
	usw_pagemap_prune(&map, 0, ADDRESS_END);
	CHECK_EQ(map.root, 0);
	CHECK_EQ(usw_nodes_held_bytes(&nodes), 0);
	// Free nodes that are kept warm are all that stays.
	CHECK_THAT(usw_space_held_bytes(&nodes.space), <=, 64 * NODE_BYTES);
	usw_nodes_destroy(&nodes);
}

static void test_addresses_beyond_the_tree_are_unknown(void)
{
	struct usw_nodes nodes;

	CHECK_EQ(usw_nodes_create(&nodes, 16), 0);
	struct usw_pagemap map = {.nodes = &nodes};
	CHECK(usw_pagemap_make(&map, 0));
	CHECK(!usw_pagemap_find(&map, ADDRESS_END));
	CHECK(!usw_pagemap_find(&map, UINT64_MAX));
	CHECK_ABORTS(usw_pagemap_make(&map, ADDRESS_END));
	uint64_t address = UINT64_MAX - USW_PAGE_BYTES;
	CHECK(!usw_pagemap_next(&map, &address, UINT64_MAX));
	usw_pagemap_prune(&map, ADDRESS_END, UINT64_MAX);
	CHECK(map.root);
	usw_pagemap_prune(&map, 0, USW_PAGE_BYTES);
	CHECK(!map.root);
	usw_nodes_destroy(&nodes);
}

/** When nodes run out a page is refused, what there is stays, and everything can be given back. */
static void test_nodes_run_out(void)
{
	struct usw_nodes nodes;

	CHECK_EQ(usw_nodes_create(&nodes, 7), 0); // six nodes: one path of four, two more
	struct usw_pagemap map = {.nodes = &nodes};
	for (unsigned int round = 0; round < 3; round++) {
		usw_page_word *word = usw_pagemap_make(&map, 0);
		CHECK(word);
		atomic_store(word, word_of(0));
		CHECK(!usw_pagemap_make(&map, (uint64_t)1 << 47)); // wants three, gets two
		CHECK(usw_pagemap_find(&map, 0) == word && *word == word_of(0));
		CHECK(!usw_pagemap_find(&map, (uint64_t)1 << 47));
		CHECK_EQ(usw_pagemap_count(&map), 1);
		CHECK_EQ(usw_nodes_held_bytes(&nodes), 6 * NODE_BYTES);
		usw_pagemap_prune(&map, (uint64_t)1 << 46, ADDRESS_END);
		CHECK_EQ(usw_nodes_held_bytes(&nodes), 4 * NODE_BYTES);
		atomic_store(word, 0);
		usw_pagemap_prune(&map, 0, ADDRESS_END);
		CHECK_EQ(usw_nodes_held_bytes(&nodes), 0);
	}
	usw_nodes_destroy(&nodes);
}

/* Several targets share one space of nodes. */

#define SHARERS 3u
#if defined(__SANITIZE_THREAD__)
#define SHARER_ROUNDS 10u
#define PAIR_ROUNDS 2u
#else
#define SHARER_ROUNDS 40u
#define PAIR_ROUNDS 20u
#endif
#define SHARER_LEAVES 150u /* more than are kept warm */

static void *sharer_main(void *nodes)
{
	struct usw_pagemap map = {.nodes = nodes};

	for (uint64_t round = 0; round < SHARER_ROUNDS; round++) {
		for (uint64_t i = 0; i < SHARER_LEAVES; i++) {
			uint64_t address = i << 21 | (round & 511) << 12;
			usw_page_word *word = usw_pagemap_make(&map, address);

			CHECK(word);
			CHECK_EQ(atomic_load(word), 0);
			atomic_store(word, word_of(address));
		}
		CHECK_EQ(usw_pagemap_count(&map), SHARER_LEAVES);
		for (uint64_t i = 0; i < SHARER_LEAVES; i++) {
			uint64_t address = i << 21 | (round & 511) << 12;
			usw_page_word *word = usw_pagemap_find(&map, address);

			CHECK(word);
			CHECK_EQ(atomic_load(word), word_of(address));
			atomic_store(word, 0);
			usw_pagemap_prune(&map, address, address + USW_PAGE_BYTES);
		}
		CHECK_EQ(map.root, 0);
	}
	return NULL;
}

static void test_targets_share_the_nodes(void)
{
	struct usw_nodes nodes;
	pthread_t threads[SHARERS];

	CHECK_EQ(usw_nodes_create(&nodes, 1024), 0);
	for (uint32_t i = 0; i < SHARERS; i++)
		CHECK(pthread_create(&threads[i], NULL, sharer_main, &nodes) == 0);
	for (uint32_t i = 0; i < SHARERS; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(usw_nodes_held_bytes(&nodes), 0);
	usw_nodes_destroy(&nodes);
}

/* One target: its reclaim thread maps under the lock, its fault thread reads without it. */

#define PAIR_PAGES 4096u

struct pair {
	struct usw_nodes nodes;
	struct usw_pagemap map;
	pthread_mutex_t map_lock;
	_Atomic bool looking; /* the fault thread has looked at the empty map; orders nothing */
	_Atomic bool done;
};

static uint64_t pair_address(uint64_t i)
{
	return i * 37 % PAIR_PAGES << 16;
}

static void *evictor_main(void *argument)
{
	struct pair *pair = argument;

	while (!atomic_load_explicit(&pair->looking, memory_order_relaxed))
		usw_cpu_relax();
	for (unsigned int round = 0; round < PAIR_ROUNDS; round++) {
		for (uint64_t i = 0; i < PAIR_PAGES; i++) {
			uint64_t address = pair_address(i);

			pthread_mutex_lock(&pair->map_lock);
			usw_page_word *word = usw_pagemap_make(&pair->map, address);
			CHECK(word);
			uint64_t before = atomic_load(word);
			if (usw_page_state(before) == USW_PAGE_NONE ||
			    usw_page_state(before) == USW_PAGE_RESIDENT) {
				uint64_t evicting = usw_page_make(USW_PAGE_EVICTING, 0, 0, 0);

				usw_page_transition(word, before, evicting);
				pthread_mutex_unlock(&pair->map_lock);
				// Outside the lock: the word is not zero, so its leaf stays.
				usw_page_transition(word, evicting, word_of(address));
				continue;
			}
			pthread_mutex_unlock(&pair->map_lock);
		}
	}
	atomic_store(&pair->done, true);
	return NULL;
}

/** Faults pages in without the lock; now and then unmaps a range under it. */
static void run_fault_thread(struct pair *pair)
{
	uint64_t state = 5;

	while (!atomic_load(&pair->done)) {
		uint64_t address = pair_address(check_random(&state));

		if (usw_pagemap_next(&pair->map, &address, address + ((uint64_t)1 << 24)))
			CHECK_EQ(address % (1 << 16), 0);
		atomic_store_explicit(&pair->looking, true, memory_order_relaxed);
		usw_page_word *word = usw_pagemap_find(&pair->map, address);
		uint64_t before = word ? atomic_load(word) : 0;
		if (usw_page_state(before) == USW_PAGE_EVICTED) {
			CHECK_EQ(before, word_of(address));
			usw_page_transition(word, before,
					    usw_page_make(USW_PAGE_RESIDENT, 3, 0, 0));
		}
		if (check_random(&state) % 512)
			continue;

		uint64_t start = address;
		uint64_t end = start + ((uint64_t)1 << 24);
		pthread_mutex_lock(&pair->map_lock);
		for (; (word = usw_pagemap_next(&pair->map, &address, end));
		     address += USW_PAGE_BYTES) {
			before = atomic_load(word);
			if (usw_page_state(before) != USW_PAGE_EVICTING)
				usw_page_transition(word, before, 0);
		}
		usw_pagemap_prune(&pair->map, start, end);
		pthread_mutex_unlock(&pair->map_lock);
	}
}

static void test_fault_thread_needs_no_lock(void)
{
	struct pair pair = {.map_lock = PTHREAD_MUTEX_INITIALIZER};
	pthread_t evictor;
	uint64_t address = 0;
	usw_page_word *word;

	CHECK_EQ(usw_nodes_create(&pair.nodes, 1024), 0);
	pair.map.nodes = &pair.nodes;
	CHECK(pthread_create(&evictor, NULL, evictor_main, &pair) == 0);
	run_fault_thread(&pair);
	pthread_join(evictor, NULL);
	for (; (word = usw_pagemap_next(&pair.map, &address, ADDRESS_END));
	     address += USW_PAGE_BYTES)
		usw_page_transition(word, atomic_load(word), 0);
	usw_pagemap_prune(&pair.map, 0, ADDRESS_END);
	CHECK_EQ(usw_nodes_held_bytes(&pair.nodes), 0);
	usw_nodes_destroy(&pair.nodes);
}

int main(void)
{
	check_start(100);
	test_every_transition();
	test_transitions_that_lie_abort();
	test_words_keep_their_fields();
	test_heat_earns_laps_that_are_counted();
	test_like_a_plain_array();
	test_addresses_beyond_the_tree_are_unknown();
	test_nodes_run_out();
	test_targets_share_the_nodes();
	test_fault_thread_needs_no_lock();
	return 0;
}
