// SPDX-License-Identifier: MIT

/**
 * @file
 * Race: small mappings are replaced so fast that most are gone before they are registered.
 *
 *     race_replace SECONDS [SEED]
 *
 * The unmapping of memory that is not registered raises no event. So whoever looks at a mapping,
 * registers it and then takes pages away may meet another one at the same place, of which the
 * kernel knows nothing: pages taken from that would read as zeros. Changers own a slot each, with
 * gaps between them, and know exactly what must be there; some generations live long enough to be
 * evicted.
 */

#include "program.h"

#include <pthread.h>

#define CHANGERS 3
#define STRIDE_PAGES 64ul
#define GENERATIONS_PER_LONG_LIFE 7
#define PASSES_LONG 40
#define PASSES_SHORT 3

static const size_t slot_pages[CHANGERS] = {4, 16, 16};
static char *arena;
static uint64_t deadline_ns;
static atomic_ulong generations_done;

static void replace(char *start, size_t pages)
{
	CHECK_CALL(munmap(start, pages * PAGE_BYTES));
	CHECK(mmap(start, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == start,
	      "mmap at %p: %s", (void *)start, strerror(errno));
}

static void *change_slot(void *argument)
{
	size_t slot = (uintptr_t)argument;
	size_t pages = slot_pages[slot];
	char *start = page_at(arena, slot * STRIDE_PAGES);

	for (uint64_t generation = 1; now_ns() < deadline_ns; generation++) {
		bool is_long = generation % GENERATIONS_PER_LONG_LIFE == 0;
		uint64_t tag = mix(seed + slot) + (generation << 8);

		replace(start, pages);
		for (size_t page = 0; page < pages; page++) {
			uint64_t *words = page_at(start, page);

			words[0] = words[PAGE_WORDS - 1] = tag + page;
		}
		for (int pass = 0; pass < (is_long ? PASSES_LONG : PASSES_SHORT); pass++)
			for (size_t page = 0; page < pages; page++) {
				uint64_t *words = page_at(start, page);

				CHECK(words[0] == tag + page && words[PAGE_WORDS - 1] == tag + page,
				      "generation %lu, pass %d, page %zu: %#lx %#lx, expected %#lx",
				      generation, pass, page, words[0], words[PAGE_WORDS - 1],
				      tag + page);
			}
		atomic_fetch_add(&generations_done, 1);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[CHANGERS];

	CHECK(argc >= 2, "usage: %s SECONDS [SEED]", argv[0]);
	seed = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
	arena = map_pages(CHANGERS * STRIDE_PAGES);
	memset(arena, 1, CHANGERS * STRIDE_PAGES * PAGE_BYTES);
	deadline_ns = now_ns() + strtoul(argv[1], NULL, 0) * 1000000000u;
	for (uintptr_t i = 0; i < CHANGERS; i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, change_slot, (void *)i));
	for (uintptr_t i = 0; i < CHANGERS; i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	dprintf(STDOUT_FILENO, "race_replace: %lu generations, ok\n",
		atomic_load(&generations_done));
	return 0;
}
