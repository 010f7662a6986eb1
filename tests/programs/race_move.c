// SPDX-License-Identifier: MIT

/**
 * @file
 * Race: memory moves to where that of another thread has just been.
 *
 *     race_move SECONDS [SEED]
 *
 * Threads grow arrays of their own with mremap(2), as realloc(3) does, at places that the kernel
 * chooses: most often one that another thread has just left, which has not said so yet. What the
 * arrays held before must be there at the end of each round, and what they have grown by must be zeros.
 */

#include "program.h"

#include <pthread.h>

#define MOVERS 4
#define PAGES 128ul
#define GROWTH 16ul
#define MOVES 12ul

static uint64_t deadline_ns;
static pthread_barrier_t gate; /* all grow at a time */
static atomic_bool is_over;
static atomic_ulong moves;

static void grow_and_check(uint64_t round_seed)
{
	size_t pages = PAGES;
	char *array = map_pages(pages);

	fill(array, pages, round_seed, 0);
	pthread_barrier_wait(&gate);
	for (size_t i = 0; i < MOVES; i++) {
		char *moved = mremap(array, pages * PAGE_BYTES, (pages + GROWTH) * PAGE_BYTES,
				     MREMAP_MAYMOVE);

		/* An array that is registered in part is two mappings, which realloc(3) copies. */
		if (moved == MAP_FAILED && errno == EFAULT)
			break;
		CHECK(moved != MAP_FAILED, "mremap: %s", strerror(errno));
		atomic_fetch_add(&moves, moved != array);
		array = moved;
		pages += GROWTH;
	}
	verify(array, PAGES, round_seed, 0, "grown");
	verify_zero(page_at(array, PAGES), pages - PAGES, "what it has grown by");
	pthread_barrier_wait(&gate);
	unmap_pages(array, pages);
}

static void *mover(void *argument)
{
	for (uint64_t round = 0;; round++) {
		if (!argument)
			atomic_store(&is_over, now_ns() >= deadline_ns);
		pthread_barrier_wait(&gate);
		if (atomic_load(&is_over))
			return NULL;
		grow_and_check(mix(seed + round * MOVERS + (uintptr_t)argument));
	}
}

int main(int argc, char **argv)
{
	pthread_t threads[MOVERS];

	CHECK(argc >= 2, "usage: %s SECONDS [SEED]", argv[0]);
	deadline_ns = now_ns() + strtoull(argv[1], NULL, 0) * 1000000000u;
	if (argc > 2)
		seed = strtoull(argv[2], NULL, 0);
	CHECK_THREAD(pthread_barrier_init(&gate, NULL, MOVERS));
	for (uintptr_t i = 0; i < MOVERS; i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, mover, (void *)i));
	for (size_t i = 0; i < MOVERS; i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	CHECK(atomic_load(&moves), "nothing has moved");
	printf("ok: %lu moves\n", atomic_load(&moves));
	return 0;
}
