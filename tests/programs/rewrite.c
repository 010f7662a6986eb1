// SPDX-License-Identifier: MIT

/**
 * @file
 * A plain working set: fill BYTES, rewrite and check random pages for a while, check all of it.
 *
 *     rewrite BYTES [TOUCHES [THREADS [CONTENT]]]
 *
 * CONTENT is "mixed" (the pattern of all kinds, about three to one) or "noise" (nothing to gain
 * by compression, so a budget in RAM can be made impossible). Each thread has a share of its own.
 */

#include "program.h"

#include <pthread.h>

struct share {
	pthread_t thread;
	uint64_t id;
	size_t pages;
	size_t touches;
	uint64_t *start;
	uint32_t *generations;
};

static bool noise;

/* Noise is the incompressible kind of page for every index. */
static uint64_t index_of(size_t page)
{
	return noise ? page * 16 : page;
}

static void write_page(struct share *share, size_t page)
{
	fill(page_at(share->start, page), 1, seed + share->id * 7919 + share->generations[page],
	     index_of(page));
}

static void verify_page(struct share *share, size_t page, const char *what)
{
	verify(page_at(share->start, page), 1, seed + share->id * 7919 + share->generations[page],
	       index_of(page), what);
}

static void *work(void *argument)
{
	struct share *share = argument;
	uint64_t chance = mix(seed + share->id);

	share->start = map_pages(share->pages);
	share->generations = calloc(share->pages, sizeof(*share->generations));
	CHECK(share->generations, "calloc failed");
	for (size_t page = 0; page < share->pages; page++)
		write_page(share, page);
	for (size_t i = 0; i < share->touches; i++) {
		size_t page = random_below(&chance, share->pages);

		verify_page(share, page, "random page");
		if (i % 2)
			continue;
		share->generations[page]++;
		write_page(share, page);
	}
	for (size_t page = 0; page < share->pages; page++)
		verify_page(share, page, "final pass");
	free(share->generations);
	return NULL;
}

int main(int argc, char **argv)
{
	size_t threads = argc > 3 ? strtoul(argv[3], NULL, 0) : 1;
	struct share shares[64] = {0};
	size_t pages;

	CHECK(argc > 1 && threads && threads <= ARRAY_COUNT(shares),
	      "usage: %s BYTES [TOUCHES [THREADS [mixed|noise]]]", argv[0]);
	pages = parse_bytes(argv[1]) / PAGE_BYTES / threads;
	noise = argc > 4 && !strcmp(argv[4], "noise");
	for (size_t i = 0; i < threads; i++) {
		shares[i].id = i;
		shares[i].pages = pages;
		shares[i].touches = argc > 2 ? strtoul(argv[2], NULL, 0) / threads : 0;
		CHECK_THREAD(pthread_create(&shares[i].thread, NULL, work, &shares[i]));
	}
	for (size_t i = 0; i < threads; i++)
		CHECK_THREAD(pthread_join(shares[i].thread, NULL));
	dprintf(STDOUT_FILENO, "rewrite: %zu MiB right\n", pages * threads * PAGE_BYTES >> 20);
	return 0;
}
