// SPDX-License-Identifier: MIT

/**
 * @file
 * Touch fresh memory as fast as the machine can, then check every page of it.
 *
 *     limit_growth mmap|brk|arenas|all|zeros|asleep BYTES
 *
 * One word a page is written while growing: anything more would give the pager time. The word
 * follows from the page's number, and at the end all of the page is looked at. "arenas" is 64
 * threads with a malloc arena each, "all" is the three at once. "zeros" is memory all of which was
 * read before it is written: zero pages are mapped, which count as nothing and need no fault of a
 * missing page to become real ones. "asleep" is mmap after two seconds of sleep, in which nothing was
 * seen to happen, with a sixth of the bytes there before. Who runs this samples its resident
 * memory from outside and compares the maximum with the limit.
 */

#include "program.h"

#include <malloc.h>
#include <pthread.h>

#define ARENAS 64
#define MMAP_THREADS 2
#define MMAP_STEP_PAGES 4096ul /* 16 MiB a mapping */

/* All begin together, and none gives anything back before all have grown. */
static pthread_barrier_t start_line;
static pthread_barrier_t all_grown;

/* The mark of a page and nothing else is in it. */
static void verify_mark(const uint64_t *page, size_t mark_word, uint64_t mark, const char *what)
{
	for (size_t word = 0; word < PAGE_WORDS; word++) {
		uint64_t want = word == mark_word ? mark : 0;

		CHECK(page[word] == want, "%s: word %zu at %p: %#lx, expected %#lx", what, word,
		      (const void *)&page[word], page[word], want);
	}
}

/* ------------------------------------------------------------------ mmap */

struct growth {
	pthread_t thread;
	uint64_t id;
	size_t bytes;
};

static void touch(uint64_t *start, size_t pages, uint64_t id)
{
	for (size_t page = 0; page < pages; page++)
		start[page * PAGE_WORDS + page % PAGE_WORDS] = mix(id + page);
}

static void verify_touched(const uint64_t *start, size_t pages, uint64_t id, const char *what)
{
	for (size_t page = 0; page < pages; page++)
		verify_mark(start + page * PAGE_WORDS, page % PAGE_WORDS, mix(id + page), what);
}

static void *grow_by_mmap(void *argument)
{
	struct growth *growth = argument;
	size_t count = (growth->bytes / PAGE_BYTES + MMAP_STEP_PAGES - 1) / MMAP_STEP_PAGES;
	uint64_t *mappings[1024];

	CHECK(count <= ARRAY_COUNT(mappings), "too much for one thread");
	pthread_barrier_wait(&start_line);
	for (size_t i = 0; i < count; i++) {
		mappings[i] = map_pages(MMAP_STEP_PAGES);
		touch(mappings[i], MMAP_STEP_PAGES, seed + (growth->id << 40) + (i << 20));
	}
	pthread_barrier_wait(&all_grown);
	for (size_t i = 0; i < count; i++)
		verify_touched(mappings[i], MMAP_STEP_PAGES, seed + (growth->id << 40) + (i << 20),
			       "mmap");
	return NULL;
}

/* ------------------------------------------------------------------ asleep */

static void *grow_after_sleep(void *argument)
{
	struct growth *growth = argument;
	struct timespec pause = {.tv_sec = 2};
	size_t pages = growth->bytes / PAGE_BYTES / 6;
	uint64_t *start = map_pages(pages);

	touch(start, pages, seed + (growth->id << 20));
	while (nanosleep(&pause, &pause))
		CHECK(errno == EINTR, "nanosleep: %s", strerror(errno));
	growth->bytes -= pages * PAGE_BYTES;
	grow_by_mmap(growth);
	verify_touched(start, pages, seed + (growth->id << 20), "before the sleep");
	return NULL;
}

/* ------------------------------------------------------------------ zeros */

/* In small pages, because a huge page of zeros is written by one fault for 2 MiB. */
static void *grow_by_writing_zeros(void *argument)
{
	struct growth *growth = argument;
	size_t pages = growth->bytes / PAGE_BYTES;
	uint64_t *start = map_pages(pages);

	CHECK_CALL(madvise(start, pages * PAGE_BYTES, MADV_NOHUGEPAGE));
	for (size_t page = 0; page < pages; page++)
		CHECK(((volatile uint64_t *)start)[page * PAGE_WORDS] == 0, "page %zu", page);
	pthread_barrier_wait(&start_line);
	touch(start, pages, seed + (growth->id << 40));
	pthread_barrier_wait(&all_grown);
	verify_touched(start, pages, seed + (growth->id << 40), "zeros");
	return NULL;
}

/* ------------------------------------------------------------------ brk */

/* Nobody else may move the break meanwhile, so malloc is told to leave it alone. */
static void *grow_by_brk(void *argument)
{
	static const size_t steps[] = {64 << 10, 132 << 10, 1 << 20};
	struct growth *growth = argument;
	char *heap = sbrk(0);
	char *end;

	CHECK_CALL(brk((void *)(((uintptr_t)heap + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1))));
	heap = sbrk(0);
	end = heap;
	pthread_barrier_wait(&start_line);
	for (size_t i = 0; end < heap + growth->bytes; i++) {
		size_t bytes = steps[i % ARRAY_COUNT(steps)];
		uint64_t first = (uint64_t)(end - heap) / PAGE_BYTES;

		CHECK(sbrk((intptr_t)bytes) == end, "sbrk: %s", strerror(errno));
		for (size_t page = 0; page < bytes / PAGE_BYTES; page++)
			*(uint64_t *)page_at(end, page) = mix(seed + first + page);
		end += bytes;
	}
	pthread_barrier_wait(&all_grown);
	for (char *page = heap; page < end; page += PAGE_BYTES)
		verify_mark((uint64_t *)(void *)page, 0,
			    mix(seed + (uint64_t)(page - heap) / PAGE_BYTES), "brk");
	return NULL;
}

/* ------------------------------------------------------------------ arenas */

/* A list through the objects themselves; check is the last word of each. */
struct object {
	struct object *next;
	uint64_t words;
	uint64_t check[];
};

static size_t object_bytes(uint64_t *chance)
{
	if (random_below(chance, 8) == 0)
		return 32768 + random_below(chance, 65536);
	return 32 + random_below(chance, 2000);
}

static void *grow_by_malloc(void *argument)
{
	struct growth *growth = argument;
	uint64_t chance = seed + growth->id * 1000003;
	struct object *list = NULL;

	/* The arena is there before anybody grows, as in a pool of threads. */
	void *volatile first = malloc(64);
	free(first);
	pthread_barrier_wait(&start_line);
	for (size_t bytes = 0; bytes < growth->bytes;) {
		size_t size = object_bytes(&chance) & ~7ul;
		struct object *object = malloc(size);

		CHECK(object, "malloc of %zu bytes failed", size);
		object->next = list;
		object->words = (size - sizeof(*object)) / 8;
		for (size_t word = object->words; word;
		     word -= word > PAGE_WORDS ? PAGE_WORDS : word)
			object->check[word - 1] = mix((uintptr_t)object + word);
		list = object;
		bytes += size;
	}
	pthread_barrier_wait(&all_grown);
	while (list) {
		struct object *object = list;

		for (size_t word = object->words; word;
		     word -= word > PAGE_WORDS ? PAGE_WORDS : word)
			CHECK(object->check[word - 1] == mix((uintptr_t)object + word),
			      "object %p, word %zu", (void *)object, word);
		list = object->next;
		free(object);
	}
	return NULL;
}

/* ------------------------------------------------------------------ which and how much */

static struct growth growths[ARENAS + MMAP_THREADS + 1];
static size_t growth_count;

static void plan(void *(*grow)(void *), size_t threads, size_t bytes)
{
	pthread_attr_t small;

	CHECK_THREAD(pthread_attr_init(&small));
	CHECK_THREAD(pthread_attr_setstacksize(&small, 128 << 10));
	for (size_t i = 0; i < threads; i++) {
		struct growth *growth = &growths[growth_count++];

		growth->id = growth_count;
		growth->bytes = bytes / threads;
		CHECK_THREAD(pthread_create(&growth->thread, &small, grow, growth));
	}
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[1] : "";
	bool all = !strcmp(mode, "all");
	bool by_mmap = all || !strcmp(mode, "mmap");
	bool by_brk = all || !strcmp(mode, "brk");
	bool by_malloc = all || !strcmp(mode, "arenas");
	bool by_zeros = !strcmp(mode, "zeros");
	bool asleep = !strcmp(mode, "asleep");
	size_t kinds = (size_t)by_mmap + by_brk + by_malloc + by_zeros + asleep;
	size_t threads =
		(by_mmap + by_zeros + asleep) * MMAP_THREADS + by_brk + (size_t)by_malloc * ARENAS;
	size_t bytes;

	CHECK(argc == 3 && kinds, "usage: %s mmap|brk|arenas|all|zeros|asleep BYTES", argv[0]);
	bytes = parse_bytes(argv[2]) / kinds;
	mallopt(M_ARENA_MAX, ARENAS + 1);
	CHECK_THREAD(pthread_barrier_init(&start_line, NULL, (unsigned int)threads));
	CHECK_THREAD(pthread_barrier_init(&all_grown, NULL, (unsigned int)threads));
	if (by_mmap)
		plan(grow_by_mmap, MMAP_THREADS, bytes);
	if (by_zeros)
		plan(grow_by_writing_zeros, MMAP_THREADS, bytes);
	if (asleep)
		plan(grow_after_sleep, MMAP_THREADS, bytes);
	if (by_malloc)
		plan(grow_by_malloc, ARENAS, bytes);
	if (by_brk)
		plan(grow_by_brk, 1, bytes);
	for (size_t i = 0; i < growth_count; i++)
		CHECK_THREAD(pthread_join(growths[i].thread, NULL));
	dprintf(STDOUT_FILENO, "%s: %zu MiB touched and checked\n", mode, bytes * kinds >> 20);
	return 0;
}
