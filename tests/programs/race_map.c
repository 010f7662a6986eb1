// SPDX-License-Identifier: MIT

/**
 * @file
 * Race: mappings come, move and go while the pager evicts from them.
 *
 *     race_map unmap|fixed|dontneed|mremap|mprotect SECONDS [SEED]
 *
 * Four changers own a slot of address space each; the slots lie side by side, so the kernel merges
 * and splits their mappings all the time. Each changer writes, checks, changes its own slot, and
 * knows exactly what must be there. A looker reads at random everywhere: its faults are the
 * other half of the race. A looker may see zeros, any word some changer wrote at that very
 * place, or, in the modes that leave a gap, SIGSEGV; never anything else.
 *
 * "Exactly" has two sides: a new mapping never loses a page (a MOVE planned for the old one would
 * take it), and old content never comes back.
 */

#include "program.h"

#include <pthread.h>
#include <setjmp.h>

#define CHANGERS 4
#define LOOKERS 1
#define SLOT_PAGES 128ul
#define TAG 0x5aa5000000000000u

static char *arena;
static char *spare; /* a second arena, for what moves */
static uint64_t deadline_ns;
static atomic_ulong rounds_done;

/* ------------------------------------------------------------------ words */

/* Says itself which page it belongs to, so that a looker can check it without a lock. */
static uint64_t tagged(size_t slot_page, uint64_t generation)
{
	return TAG | (generation & 0xffffff) << 16 | slot_page;
}

static char *slot_start(size_t slot)
{
	return page_at(arena, slot * SLOT_PAGES);
}

static void write_slot(char *start, size_t pages, uint64_t generation)
{
	for (size_t page = 0; page < pages; page++) {
		uint64_t *words = page_at(start, page);

		words[0] = tagged(page, generation);
		words[page % PAGE_WORDS] = tagged(page, generation);
		words[PAGE_WORDS - 1] = tagged(page, generation);
	}
}

static void verify_slot(char *start, size_t first, size_t pages, uint64_t generation,
			const char *what)
{
	for (size_t page = first; page < first + pages; page++) {
		uint64_t *words = page_at(start, page);
		uint64_t want = generation ? tagged(page, generation) : 0;

		CHECK(words[0] == want && words[page % PAGE_WORDS] == want &&
			      words[PAGE_WORDS - 1] == want,
		      "%s: page %zu at %p: %#lx %#lx %#lx, expected %#lx", what, page,
		      (void *)words, words[0], words[page % PAGE_WORDS], words[PAGE_WORDS - 1],
		      want);
	}
}

/* ------------------------------------------------------------------ changers */

static void map_at(char *start, size_t pages, int flags)
{
	CHECK(mmap(start, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0) == start,
	      "mmap at %p: %s", (void *)start, strerror(errno));
}

/* Unmapped and mapped again at the same place at once: the shortest possible gap. */
static void change_by_unmap(size_t slot, uint64_t generation)
{
	char *start = slot_start(slot);

	verify_slot(start, 0, SLOT_PAGES, generation - 1, "before munmap");
	CHECK_CALL(munmap(start, SLOT_PAGES * PAGE_BYTES));
	map_at(start, SLOT_PAGES, MAP_FIXED_NOREPLACE);
	if (generation % 2)
		verify_slot(start, 0, SLOT_PAGES, 0, "fresh after munmap");
	write_slot(start, SLOT_PAGES, generation);
	verify_slot(start, 0, SLOT_PAGES, generation, "rewritten after munmap");
}

static void change_by_fixed(size_t slot, uint64_t generation)
{
	char *start = slot_start(slot);

	verify_slot(start, 0, SLOT_PAGES, generation - 1, "before MAP_FIXED");
	map_at(start, SLOT_PAGES, MAP_FIXED);
	if (generation % 2)
		verify_slot(start, 0, SLOT_PAGES, 0, "fresh after MAP_FIXED");
	write_slot(start, SLOT_PAGES, generation);
	verify_slot(start, 0, SLOT_PAGES, generation, "rewritten after MAP_FIXED");
}

/* Half of the slot is thrown away in one piece, half of the time rewritten at once. */
static void change_by_dontneed(size_t slot, uint64_t generation)
{
	char *start = slot_start(slot);
	size_t half = SLOT_PAGES / 2;

	verify_slot(start, 0, SLOT_PAGES, generation - 1, "before MADV_DONTNEED");
	CHECK_CALL(madvise(page_at(start, half), half * PAGE_BYTES, MADV_DONTNEED));
	if (generation % 2) {
		verify_slot(start, half, half, 0, "after MADV_DONTNEED");
		verify_slot(start, 0, half, generation - 1, "beside MADV_DONTNEED");
	}
	write_slot(start, SLOT_PAGES, generation);
	verify_slot(start, 0, SLOT_PAGES, generation, "rewritten after MADV_DONTNEED");
}

/* To the spare arena and back; what is left behind is mapped afresh. */
static void change_by_mremap(size_t slot, uint64_t generation)
{
	char *start = slot_start(slot);
	char *other = page_at(spare, slot * SLOT_PAGES);
	size_t bytes = SLOT_PAGES * PAGE_BYTES;

	CHECK(mremap(start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, other) == other,
	      "mremap away: %s", strerror(errno));
	map_at(start, SLOT_PAGES, MAP_FIXED_NOREPLACE);
	write_slot(start, SLOT_PAGES, generation);
	verify_slot(other, 0, SLOT_PAGES, generation - 1, "moved away");
	verify_slot(start, 0, SLOT_PAGES, generation, "the old place, rewritten");
	write_slot(other, SLOT_PAGES, generation);
	CHECK(mremap(other, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, start) == start,
	      "mremap back: %s", strerror(errno));
	verify_slot(start, 0, SLOT_PAGES, generation, "moved back");
}

/* Stretches become read-only and writable again, which splits and merges the mapping. */
static void change_by_mprotect(size_t slot, uint64_t generation)
{
	char *start = slot_start(slot);

	for (size_t page = 0; page < SLOT_PAGES; page += 32)
		CHECK_CALL(mprotect(page_at(start, page), 16 * PAGE_BYTES, PROT_READ));
	verify_slot(start, 0, SLOT_PAGES, generation - 1, "partly read-only");
	for (size_t page = 0; page < SLOT_PAGES; page += 32)
		CHECK_CALL(mprotect(page_at(start, page), 16 * PAGE_BYTES, PROT_READ | PROT_WRITE));
	write_slot(start, SLOT_PAGES, generation);
	verify_slot(start, 0, SLOT_PAGES, generation, "writable again");
}

static void (*change)(size_t slot, uint64_t generation);

static void *change_slot(void *argument)
{
	size_t slot = (uintptr_t)argument;

	write_slot(slot_start(slot), SLOT_PAGES, 1);
	for (uint64_t generation = 2; now_ns() < deadline_ns; generation++) {
		change(slot, generation);
		atomic_fetch_add(&rounds_done, 1);
	}
	return NULL;
}

/* ------------------------------------------------------------------ lookers */

static bool gaps;
static __thread bool looking;
static __thread sigjmp_buf nothing_there;

static void on_segv(int signal UNUSED, siginfo_t *info, void *context UNUSED)
{
	if (!gaps || !looking)
		fail("SIGSEGV at %p, which is mapped", info->si_addr);
	siglongjmp(nothing_there, 1);
}

static void *look(void *argument)
{
	uint64_t chance = mix(seed * 100 + (uintptr_t)argument);

	looking = true;
	while (now_ns() < deadline_ns) {
		size_t page = random_below(&chance, CHANGERS * SLOT_PAGES);
		volatile uint64_t *words = page_at(arena, page);
		uint64_t seen;

		if (sigsetjmp(nothing_there, 1))
			continue;
		seen = words[random_below(&chance, 2) ? 0 : PAGE_WORDS - 1];
		CHECK(!seen || ((seen & TAG) == TAG && (seen & 0xffff) == page % SLOT_PAGES),
		      "a looker saw %#lx in page %zu", seen, page);
	}
	return NULL;
}

/* ------------------------------------------------------------------ main */

static const struct {
	const char *name;
	void (*change)(size_t slot, uint64_t generation);
	bool gaps;
} modes[] = {
	{"unmap", change_by_unmap, true},        {"fixed", change_by_fixed, false},
	{"dontneed", change_by_dontneed, false}, {"mremap", change_by_mremap, true},
	{"mprotect", change_by_mprotect, false},
};

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_sigaction = on_segv, .sa_flags = SA_NODEFER | SA_SIGINFO};
	pthread_t threads[CHANGERS + LOOKERS];

	CHECK(argc >= 3, "usage: %s MODE SECONDS [SEED]", argv[0]);
	seed = argc > 3 ? strtoul(argv[3], NULL, 0) : 1;
	for (size_t i = 0; i < ARRAY_COUNT(modes); i++)
		if (!strcmp(argv[1], modes[i].name)) {
			change = modes[i].change;
			gaps = modes[i].gaps;
		}
	CHECK(change, "no such mode: %s", argv[1]);
	CHECK_CALL(sigaction(SIGSEGV, &action, NULL));
	arena = map_pages(CHANGERS * SLOT_PAGES);
	spare = mmap(NULL, CHANGERS * SLOT_PAGES * PAGE_BYTES, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(spare != MAP_FAILED, "mmap: %s", strerror(errno));
	deadline_ns = now_ns() + strtoul(argv[2], NULL, 0) * 1000000000u;
	for (uintptr_t i = 0; i < CHANGERS; i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, change_slot, (void *)i));
	for (uintptr_t i = 0; i < LOOKERS; i++)
		CHECK_THREAD(pthread_create(&threads[CHANGERS + i], NULL, look, (void *)i));
	for (size_t i = 0; i < ARRAY_COUNT(threads); i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	dprintf(STDOUT_FILENO, "race_map %s: %lu rounds, ok\n", argv[1], atomic_load(&rounds_done));
	return 0;
}
