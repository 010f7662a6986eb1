// SPDX-License-Identifier: MIT

/**
 * @file
 * Race: the kernel changes the accessed bits of pages at the moment the pages are moved out.
 *
 *     race_cold SECONDS [SEED]
 *
 * One thread reads pages at random, the other says of all of them, again and again, that they are
 * cold: no event tells of it and no content changes, but accessed bits are cleared, and set again
 * by the reads. Whoever measures access does the same (DAMON, the kernel's own reclaim). A move that
 * meets such a change half way makes a second try, and the first has to be remembered.
 */

#include "program.h"

#include <pthread.h>

#define PAGES 256ul /* 1 MiB: each of them is moved again and again */

#ifndef MADV_COLD
#define MADV_COLD 20
#endif

static char *start;
static uint64_t deadline_ns;

static void *cool(void *argument)
{
	while (now_ns() < deadline_ns)
		CHECK_CALL(madvise(start, PAGES * PAGE_BYTES, MADV_COLD));
	return argument;
}

int main(int argc, char **argv)
{
	uint64_t seconds = argc > 1 ? strtoul(argv[1], NULL, 0) : 3;
	uint64_t chance;
	pthread_t thread;

	seed = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
	chance = mix(seed);
	start = map_pages(PAGES);
	fill(start, PAGES, seed, 0);
	deadline_ns = now_ns() + seconds * 1000000000u;
	CHECK_THREAD(pthread_create(&thread, NULL, cool, NULL));
	for (uint64_t i = 0; i % 256 || now_ns() < deadline_ns; i++) {
		uint64_t page = random_below(&chance, PAGES);
		uint64_t word = random_below(&chance, PAGE_WORDS);
		uint64_t found = *(volatile uint64_t *)(start + page * PAGE_BYTES + word * 8);

		CHECK(found == page_word(seed, page, word), "page %lu, word %lu: %#lx", page, word,
		      found);
	}
	CHECK_THREAD(pthread_join(thread, NULL));
	verify(start, PAGES, seed, 0, "at the end");
	dprintf(STDOUT_FILENO, "race_cold: ok\n");
	return 0;
}
