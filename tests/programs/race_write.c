// SPDX-License-Identifier: MIT

/**
 * @file
 * Race: threads write to pages at the moment the pages are moved out.
 *
 *     race_write SECONDS [SEED]
 *
 * Twelve threads add to counters on random pages: each page has a counter shared by all and one of
 * its own for every thread, spread over the page. An update that fell between the copy and the
 * removal of a page would be missing in the sum. With SECONDS 0 it never ends (to be killed).
 */

#include "program.h"

#include <pthread.h>

#define PAGES 6144ul /* 24 MiB */
#define THREADS 12

static char *start;
static uint64_t deadline_ns;
static uint32_t own_counts[THREADS][PAGES];

/* Word 0 is shared; the thread's own lie 40 words apart. */
static _Atomic uint64_t *counter_of(size_t page, size_t thread)
{
	return (_Atomic uint64_t *)page_at(start, page) + 1 + thread * 40;
}

static void *count(void *argument)
{
	size_t id = (uintptr_t)argument;
	uint64_t chance = mix(seed * THREADS + id);

	for (uint64_t i = 0; i % 256 || !deadline_ns || now_ns() < deadline_ns; i++) {
		size_t page = random_below(&chance, PAGES);

		/* Every fourth access stays nearby, so that present pages are written too. */
		for (size_t again = 0; again <= (i % 4 == 0) * 8; again++) {
			CHECK(atomic_load(counter_of(page, id)) == own_counts[id][page],
			      "page %zu, thread %zu: %lu, expected %u", page, id,
			      atomic_load(counter_of(page, id)), own_counts[id][page]);
			atomic_store(counter_of(page, id), ++own_counts[id][page]);
			atomic_fetch_add((_Atomic uint64_t *)page_at(start, page), 1);
			page = (page + 1) % PAGES;
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[THREADS];
	uint64_t seconds = argc > 1 ? strtoul(argv[1], NULL, 0) : 3;

	seed = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
	start = map_pages(PAGES);
	dprintf(STDOUT_FILENO, "race_write: running\n");
	if (seconds)
		deadline_ns = now_ns() + seconds * 1000000000u;
	for (uintptr_t i = 0; i < THREADS; i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, count, (void *)i));
	for (size_t i = 0; i < THREADS; i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	for (size_t page = 0; page < PAGES; page++) {
		uint64_t sum = 0;

		for (size_t i = 0; i < THREADS; i++) {
			CHECK(*counter_of(page, i) == own_counts[i][page],
			      "page %zu, thread %zu: %lu, expected %u", page, i,
			      *counter_of(page, i), own_counts[i][page]);
			sum += own_counts[i][page];
		}
		CHECK(*(uint64_t *)page_at(start, page) == sum, "page %zu: %lu, expected %lu", page,
		      *(uint64_t *)page_at(start, page), sum);
	}
	dprintf(STDOUT_FILENO, "race_write: ok\n");
	return 0;
}
