// SPDX-License-Identifier: MIT

/**
 * @file
 * Fuzz: threads and their children do to their memory whatever a program may do, and check it.
 *
 *     fuzz_space SEED [STEPS [THREADS [STATE]]]
 *
 * Each thread owns some areas and keeps books about them: what is mapped, how, and which stamp each
 * page holds. The words of a page follow from its stamp, which nobody uses twice, so a page that
 * turns up at another place or time is found as well as one that is lost. The books are private
 * memory of a file: nobody manages that, and a child inherits them together with what they describe.
 *
 * Programs that are executed on the way get a seed of their own, or go on with pages that the last one
 * has left in a file. Children whose parent has ended are waited for by a pipe that they all hold.
 *
 * The children of a thread have all threads' memory, as it was at one moment. So a thread says in
 * the books what it is about to do, does it, and says that it is done; who forks holds the books
 * meanwhile. What a child finds of another thread is then what its books say, but for one call
 * that may have happened or not.
 *
 * Not done, for no pager hears of it (docs/internals/eviction.md): to make a guard of pages with
 * content and to take it away again; and MADV_WIPEONFORK in a run with children of a bare clone(2),
 * whose mappings nobody can read. An inaccessible page is not read but keeps its content.
 */

#include "program.h"

#include <alloca.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/uio.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

#define OWNERS_MAX 4u
#define AREAS 10u
#define AREA_PAGES 1024u
#define OWNED_PAGES_MAX 3072u
#define LOCKED_PAGES_MAX 48u
#define IO_PAGES 8u
#define HUGE_PAGES ((uint32_t)(HUGE_BYTES / PAGE_BYTES))
#define FRAME_PAGES_MAX 200u
#define FORKS_AT_ONCE 3u
#define STACK_PAGES_MIN 8u
#define BLOCKS 12u
#define DEEDS 1024u
#define DEEDS_TOLD 12u
#define CHILDREN_MAX 2u
#define DEPTH_MAX 2u
#define GENERATIONS 2u /* threads that an owner has, one after the other */
#define CHILD_STEPS 8u /* a child does one step of so many of its parent's */

extern char **environ;

enum {
	IS_MAPPED = 1,
	IS_READABLE = 2,
	IS_WRITABLE = 4,
	IS_WIPED = 8,     /* zeros in a child */
	IS_WITHHELD = 16, /* not there in a child */
	IS_LOCKED = 32,
	IS_GUARD = 64,
	IS_LAZY = 128, /* MADV_FREE: zeros are as good, until it is written */
	IS_FILE = 256, /* private memory of a file */
	IS_ALIKE = IS_MAPPED | IS_READABLE | IS_WRITABLE | IS_WIPED | IS_WITHHELD | IS_LOCKED |
		   IS_FILE,
};

struct note {
	uint64_t stamp; /* 0: zeros */
	uint64_t is;
	uint64_t without; /* the stamp that it has when what was written is discarded */
};

struct area {
	char *start; /* NULL: not in use */
	uint32_t pages;
	bool is_heap; /* what brk(2) has given: not to be moved or unmapped */
};

struct range {
	uint32_t area;
	uint32_t first;
	uint32_t count;
};

/* What a thread may be in the middle of, as far as a child has to know. */
enum doing {
	NOTHING,
	CHANGING, /* nothing can be said of the range */
	LEAVING,  /* the pages keep their content as long as they are there */
};

/* What has been done, for the message about a page that is wrong. */
struct deed {
	const char *name;
	const char *detail;
	uint32_t depth;
	uint32_t step;
	const char *start, *end;
};

struct owner {
	uint32_t number;
	uint32_t deed_count;
	struct deed deeds[DEEDS];
	uint64_t chance;
	const char *step_name;
	uint32_t step;
	uint32_t steps;
	bool is_alone;     /* there is no other thread */
	bool may_allocate; /* not below a bare clone(2), where locks of malloc(3) are as they were */
	pid_t children[CHILDREN_MAX];
	char *blocks[BLOCKS];
	size_t block_bytes[BLOCKS];
	uint64_t block_stamps[BLOCKS];

	enum doing doing;
	bool is_mapping;          /* and something may turn up anywhere */
	uint64_t mappings_before; /* what others had done when it began */
	struct range from, to;
	struct area areas[AREAS];
	struct note notes[AREAS][AREA_PAGES];
};

static struct owner *owners;
static uint32_t owner_count;
static uint32_t depth;
static const char *program;
static bool has_bare_children;       /* or memory that says MADV_WIPEONFORK */
static _Atomic uint64_t *last_stamp; /* shared with all children, as are the next two */
static _Atomic uint64_t *orphans_begun, *orphans_done;
static int orphans_end[2]; /* a pipe that nobody writes to: at its end all orphans have ended */
static int file;           /* whose pages have the stamps from here on */
static uint64_t file_stamp;
static uint64_t mappings_done; /* by any thread; something may have turned up anywhere */
static pthread_mutex_t books = PTHREAD_MUTEX_INITIALIZER;

/* ------------------------------------------------------------------ content */

static uint64_t stamped_word(uint64_t stamp, size_t word)
{
	if (!stamp || word == 0 || word == PAGE_WORDS - 1)
		return stamp;
	switch (stamp % 8) {
	case 0:
	case 1:
		return mix(stamp * PAGE_WORDS + word);
	case 2:
		return stamp;
	case 3:
		return 0;
	default:
		return stamp << 32 | (mix(stamp + word) & 0xffff);
	}
}

static uint64_t new_stamp(void)
{
	return atomic_fetch_add(last_stamp, 1) + 1;
}

static void stamp_page(void *page, uint64_t stamp)
{
	uint64_t *words = page;

	for (size_t word = 0; word < PAGE_WORDS; word++)
		words[word] = stamped_word(stamp, word);
}

/* What was last done to a page, the latest first. */
static void tell_deeds(const struct owner *owner, const char *page)
{
	uint32_t told = 0;

	for (uint32_t i = 0; i < DEEDS && i < owner->deed_count && told < DEEDS_TOLD; i++) {
		const struct deed *deed = &owner->deeds[(owner->deed_count - i - 1) % DEEDS];

		if (page < deed->start || page >= deed->end)
			continue;
		dprintf(STDERR_FILENO,
			"    thread %u, depth %u, step %u: %s%s: %zu pages from %p\n",
			owner->number, deed->depth, deed->step, deed->name, deed->detail,
			(size_t)(deed->end - deed->start) / PAGE_BYTES, (const void *)deed->start);
		told++;
	}
}

static void check_page(const struct owner *owner, const void *page, uint64_t stamp, bool is_lazy,
		       const char *whose)
{
	const volatile uint64_t *words = page;
	bool is_freed = false;

	for (size_t word = 0; word < PAGE_WORDS; word++) {
		uint64_t found = words[word];
		uint64_t expected = is_freed ? 0 : stamped_word(stamp, word);

		if (found == expected)
			continue;
		if (is_lazy && !found) {
			is_freed = true;
			continue;
		}
		for (uint32_t i = 0; i < owner_count; i++)
			tell_deeds(&owners[i], page);
		fail("seed %lu, thread %u of depth %u, step %u (%s): %s page at %p, word %zu: "
		     "found %#lx, expected %#lx (stamp %#lx; the page begins with %#lx)",
		     seed, owner->number, depth, owner->step, owner->step_name, whose, page, word,
		     found, expected, stamp, words[0]);
	}
}

#define CHECK_STEP(owner, condition, what) \
	CHECK(condition, "seed %lu, thread %u of depth %u, step %u (%s): %s: %s", seed, \
	      (owner)->number, depth, (owner)->step, (owner)->step_name, what, strerror(errno))

/* ------------------------------------------------------------------ books */

static struct note *note_at(struct owner *me, struct range range, uint32_t page)
{
	return &me->notes[range.area][range.first + page];
}

static char *start_of(const struct owner *owner, struct range range)
{
	return owner->areas[range.area].start + range.first * PAGE_BYTES;
}

static size_t bytes_of(struct range range)
{
	return range.count * PAGE_BYTES;
}

static void note_range(struct owner *me, struct range range, uint64_t stamp, uint64_t is)
{
	for (uint32_t i = 0; i < range.count; i++)
		*note_at(me, range, i) = (struct note){stamp, is, 0};
}

static void note_discarded(struct owner *me, struct range range)
{
	for (uint32_t i = 0; i < range.count; i++)
		note_at(me, range, i)->stamp = note_at(me, range, i)->without;
}

static void mark_range(struct owner *me, struct range range, uint64_t set, uint64_t clear)
{
	for (uint32_t i = 0; i < range.count; i++)
		note_at(me, range, i)->is = (note_at(me, range, i)->is & ~clear) | set;
}

static void remember(struct owner *me, struct range range, const char *detail)
{
	if (range.count && me->areas[range.area].start)
		me->deeds[me->deed_count++ % DEEDS] =
			(struct deed){me->step_name,
				      detail,
				      depth,
				      me->step,
				      start_of(me, range),
				      start_of(me, range) + bytes_of(range)};
}

static bool any_is(struct owner *me, struct range range, uint64_t flags)
{
	for (uint32_t i = 0; i < range.count; i++)
		if (note_at(me, range, i)->is & flags)
			return true;
	return false;
}

static uint32_t count_pages(struct owner *me, uint64_t flags)
{
	uint32_t pages = 0;

	for (uint32_t area = 0; area < AREAS; area++)
		for (uint32_t page = 0; me->areas[area].start && page < me->areas[area].pages;
		     page++)
			pages += (me->notes[area][page].is & flags) == flags;
	return pages;
}

/* Say what is going to be done; what is said is taken back by settle(). */
static void announce(struct owner *me, enum doing doing, struct range from, struct range to,
		     bool is_mapping)
{
	pthread_mutex_lock(&books);
	me->doing = doing;
	me->is_mapping = is_mapping;
	me->mappings_before = mappings_done;
	me->from = from;
	me->to = to;
	remember(me, from, "");
	remember(me, to, ", the destination");
	pthread_mutex_unlock(&books);
}

static void announce_change(struct owner *me, struct range range)
{
	announce(me, CHANGING, range, (struct range){0}, false);
}

/* The notes are right from here on to the next settle(). */
static void begin_settling(void)
{
	int error = errno;

	pthread_mutex_lock(&books);
	errno = error;
}

static void settle(struct owner *me)
{
	for (uint32_t i = 0; i < AREAS; i++) {
		struct range all = {i, 0, me->areas[i].pages};

		if (me->areas[i].start && !me->areas[i].is_heap && !any_is(me, all, IS_MAPPED))
			me->areas[i].start = NULL;
	}
	mappings_done += me->is_mapping;
	me->doing = NOTHING;
	me->is_mapping = false;
	pthread_mutex_unlock(&books);
}

static bool is_there(const char *page)
{
	unsigned char resident;

	return mincore((void *)page, PAGE_BYTES, &resident) == 0;
}

/* ------------------------------------------------------------------ choices */

static uint64_t below(struct owner *me, uint64_t bound)
{
	return random_below(&me->chance, bound);
}

/* Mostly small, sometimes as large as can be. */
static uint32_t some_pages(struct owner *me, uint32_t most)
{
	static const uint32_t bounds[] = {2, 8, 8, 32, 32, 128, AREA_PAGES};
	uint32_t bound = bounds[below(me, ARRAY_COUNT(bounds))];

	return (uint32_t)below(me, bound < most ? bound : most) + 1;
}

/* A range of pages that are alike, or not, and have (and have not) some properties. Count 0: none. */
static struct range pick_any(struct owner *me, uint64_t with, uint64_t without, bool is_alike)
{
	for (int tries = 0; tries < 12; tries++) {
		struct range range = {.area = (uint32_t)below(me, AREAS)};
		struct area *area = &me->areas[range.area];

		if (!area->start || !area->pages)
			continue;
		range.first = (uint32_t)below(me, area->pages);
		uint32_t most = some_pages(me, area->pages - range.first);
		uint64_t is = note_at(me, range, 0)->is;
		if ((is & with) != with || (is & without))
			continue;
		for (; range.count < most; range.count++) {
			uint64_t next = note_at(me, range, range.count)->is;

			if ((is_alike && (next & IS_ALIKE) != (is & IS_ALIKE)) ||
			    (next & with) != with || (next & without))
				break;
		}
		return range;
	}
	return (struct range){0};
}

static struct range pick(struct owner *me, uint64_t with, uint64_t without)
{
	return pick_any(me, with, without, true);
}

/* One mapping or several. */
static struct range pick_wide(struct owner *me, uint64_t with, uint64_t without)
{
	return pick_any(me, with, without, below(me, 3));
}

/* One that may be moved and unmapped. */
static struct range not_of_heap(struct owner *me, struct range range)
{
	if (me->areas[range.area].is_heap)
		range.count = 0;
	return range;
}

static struct range pick_movable(struct owner *me)
{
	return not_of_heap(me, pick(me, IS_MAPPED, 0));
}

/* A free place in the books. AREAS: none. */
static uint32_t free_area(struct owner *me)
{
	uint32_t area = 0;

	while (area < AREAS && me->areas[area].start)
		area++;
	return area;
}

/* ------------------------------------------------------------------ look and write */

static void check_range(struct owner *me, struct range range)
{
	for (uint32_t i = 0; i < range.count; i++) {
		const struct note *note = note_at(me, range, i);

		if ((note->is & (IS_MAPPED | IS_READABLE | IS_GUARD)) == (IS_MAPPED | IS_READABLE))
			check_page(me, start_of(me, range) + i * PAGE_BYTES, note->stamp,
				   note->is & IS_LAZY, "my");
	}
}

static void check_all(struct owner *me)
{
	for (uint32_t i = 0; i < AREAS; i++)
		if (me->areas[i].start)
			check_range(me, (struct range){i, 0, me->areas[i].pages});
}

static void do_check(struct owner *me)
{
	check_range(me, pick_wide(me, IS_MAPPED | IS_READABLE, 0));
}

static void write_range(struct owner *me, struct range range)
{
	uint64_t stamp = new_stamp();
	bool is_equal = below(me, 8) == 0;

	announce_change(me, range);
	for (uint32_t i = 0; i < range.count; i++) {
		struct note *note = note_at(me, range, i);

		if (!is_equal)
			stamp = new_stamp();
		stamp_page(start_of(me, range) + i * PAGE_BYTES, stamp);
		*note = (struct note){stamp, note->is & ~(uint64_t)IS_LAZY, note->without};
	}
	begin_settling();
	settle(me);
}

static void do_write(struct owner *me)
{
	write_range(me, pick_wide(me, IS_MAPPED | IS_WRITABLE, IS_GUARD));
}

/* ------------------------------------------------------------------ mappings */

static void do_map(struct owner *me)
{
	static const int flags[] = {0, 0, MAP_NORESERVE, MAP_POPULATE};
	struct range range = {.area = free_area(me), .count = some_pages(me, AREA_PAGES)};

	if (range.area == AREAS || count_pages(me, IS_MAPPED) + range.count > OWNED_PAGES_MAX)
		return;
	announce(me, NOTHING, range, range, true);
	char *start = mmap(NULL, bytes_of(range), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | flags[below(me, ARRAY_COUNT(flags))], -1,
			   0);
	CHECK_STEP(me, start != MAP_FAILED, "mmap");
	begin_settling();
	me->areas[range.area] = (struct area){.start = start, .pages = range.count};
	note_range(me, range, 0, IS_MAPPED | IS_READABLE | IS_WRITABLE);
	settle(me);
	if (below(me, 2))
		write_range(me, range);
}

/* Whole huge pages, at once or when they are asked for. */
static void do_map_huge(struct owner *me)
{
	struct range range = {.area = free_area(me), .count = AREA_PAGES};
	bool is_at_once = below(me, 2);

	if (range.area == AREAS || count_pages(me, IS_MAPPED) + range.count > OWNED_PAGES_MAX)
		return;
	announce(me, NOTHING, range, range, true);
	char *start = mmap(NULL, bytes_of(range) + HUGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK_STEP(me, start != MAP_FAILED, "mmap");
	size_t before = -(uintptr_t)start % HUGE_BYTES;
	char *end = start + before + bytes_of(range);
	if (before)
		CHECK_STEP(me, munmap(start, before) == 0, "munmap");
	CHECK_STEP(me, munmap(end, HUGE_BYTES - before) == 0 || before == HUGE_BYTES, "munmap");
	if (is_at_once)
		madvise(start + before, bytes_of(range), MADV_HUGEPAGE);
	begin_settling();
	me->areas[range.area] = (struct area){.start = start + before, .pages = range.count};
	note_range(me, range, 0, IS_MAPPED | IS_READABLE | IS_WRITABLE);
	settle(me);
	write_range(me, range);
	if (!is_at_once)
		madvise(start + before + below(me, 2) * HUGE_BYTES, HUGE_BYTES, MADV_COLLAPSE);
}

static void note_file(struct owner *me, struct range range, uint32_t first)
{
	for (uint32_t i = 0; i < range.count; i++)
		*note_at(me, range, i) = (struct note){
			file_stamp + first + i, IS_MAPPED | IS_READABLE | IS_WRITABLE | IS_FILE,
			file_stamp + first + i};
}

/* What nobody manages, between and over what is. */
static void do_map_file(struct owner *me)
{
	bool is_over = below(me, 2);
	struct range range = {.area = free_area(me), .count = some_pages(me, AREA_PAGES)};

	if (is_over)
		range = not_of_heap(me, pick_wide(me, IS_MAPPED, 0));
	if (range.area == AREAS || !range.count ||
	    count_pages(me, IS_MAPPED) + range.count > OWNED_PAGES_MAX)
		return;
	uint32_t first = (uint32_t)below(me, AREA_PAGES - range.count + 1);
	announce(me, is_over ? CHANGING : NOTHING, range, is_over ? (struct range){0} : range,
		 !is_over);
	char *start = mmap(is_over ? start_of(me, range) : NULL, bytes_of(range),
			   PROT_READ | PROT_WRITE, MAP_PRIVATE | (is_over ? MAP_FIXED : 0), file,
			   (off_t)(first * PAGE_BYTES));
	CHECK_STEP(me, start != MAP_FAILED, "mmap");
	begin_settling();
	if (!is_over)
		me->areas[range.area] = (struct area){.start = start, .pages = range.count};
	note_file(me, range, first);
	settle(me);
}

static void do_unmap(struct owner *me)
{
	struct range range = not_of_heap(me, pick_wide(me, IS_MAPPED, 0));

	if (!range.count)
		return;
	announce(me, LEAVING, range, (struct range){0}, false);
	CHECK_STEP(me, munmap(start_of(me, range), bytes_of(range)) == 0, "munmap");
	begin_settling();
	note_range(me, range, 0, 0);
	settle(me);
}

/* New memory over what is there, or into a hole if nobody else has come there. */
static void do_replace(struct owner *me)
{
	struct range range = below(me, 2) ? pick(me, 0, IS_MAPPED) : pick_wide(me, IS_MAPPED, 0);
	bool is_hole = range.count && !any_is(me, range, IS_MAPPED);

	if (!range.count || me->areas[range.area].is_heap)
		return;
	announce(me, CHANGING, range, (struct range){0}, is_hole);
	char *start = mmap(
		start_of(me, range), bytes_of(range), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | (is_hole ? MAP_FIXED_NOREPLACE : MAP_FIXED), -1, 0);
	CHECK_STEP(me, start == start_of(me, range) || (is_hole && errno == EEXIST), "mmap");
	begin_settling();
	if (start != MAP_FAILED)
		note_range(me, range, 0, IS_MAPPED | IS_READABLE | IS_WRITABLE);
	settle(me);
}

/* ------------------------------------------------------------------ moves */

static void forget_what_is_gone(struct owner *me, struct range range)
{
	for (uint32_t i = 0; i < range.count; i++)
		if (!is_there(start_of(me, range) + i * PAGE_BYTES))
			*note_at(me, range, i) = (struct note){0};
}

/* The notes of a range go where it has gone. */
static void move_notes(struct owner *me, struct range from, struct range to, bool is_kept)
{
	uint64_t is = note_at(me, from, 0)->is & IS_ALIKE;

	for (uint32_t i = 0; i < to.count; i++) {
		struct note *old = i < from.count ? note_at(me, from, i) : NULL;

		*note_at(me, to, i) = old ? *old : (struct note){0, is, 0};
	}
	remember(me, to, ", where it has gone");
	if (is_kept) {
		mark_range(me, from, 0, IS_LOCKED | IS_LAZY | IS_GUARD);
		note_discarded(me, from);
	} else {
		note_range(me, from, 0, 0);
	}
}

static void note_in_place(struct owner *me, struct range range, uint32_t new_count)
{
	uint64_t is = note_at(me, range, 0)->is & IS_ALIKE;
	struct range grown = {range.area, range.first + range.count, 0};
	struct range lost = {range.area, range.first + new_count, 0};
	struct area *area = &me->areas[range.area];

	if (new_count > range.count)
		grown.count = new_count - range.count;
	else
		lost.count = range.count - new_count;
	note_range(me, grown, 0, is);
	note_range(me, lost, 0, 0);
	if (grown.first + grown.count > area->pages) {
		// what was behind the end was never noted
		struct range gap = {range.area, area->pages, 0};
		if (grown.first > area->pages)
			gap.count = grown.first - area->pages;
		note_range(me, gap, 0, 0);
		area->pages = grown.first + grown.count;
	}
}

/* To another size, wherever the kernel likes. */
static void do_resize(struct owner *me)
{
	struct range from = pick_movable(me);
	struct range to = {.area = free_area(me)};
	int flags = below(me, 4) ? MREMAP_MAYMOVE : 0;

	if (!from.count || to.area == AREAS)
		return;
	to.count = below(me, 3) ? from.count + some_pages(me, 64) : some_pages(me, from.count);
	if (from.first + to.count > AREA_PAGES ||
	    count_pages(me, IS_MAPPED) + to.count > OWNED_PAGES_MAX ||
	    ((note_at(me, from, 0)->is & (IS_LOCKED | IS_FILE)) && to.count > from.count))
		return;
	announce(me, LEAVING, from, (struct range){0}, true);
	char *start = mremap(start_of(me, from), bytes_of(from), bytes_of(to), flags);
	begin_settling();
	if (start == MAP_FAILED) {
		CHECK_STEP(me, errno == ENOMEM || errno == EFAULT, "mremap");
	} else if (start == start_of(me, from)) {
		note_in_place(me, from, to.count);
	} else {
		me->areas[to.area] = (struct area){.start = start, .pages = to.count};
		move_notes(me, from, to, false);
	}
	settle(me);
}

static bool are_apart(struct range one, struct range other)
{
	return one.area != other.area || one.first + one.count <= other.first ||
	       other.first + other.count <= one.first;
}

/*
 * What a call that failed has done in spite of that: Linux unmaps the destination first, and from 6.17
 * on moves mapping by mapping. Where that cannot be seen (the old place stays, or another thread's
 * memory may have come into the gap by now) all of it is left alone from here on.
 */
static void note_failed_move(struct owner *me, struct range from, struct range to, bool is_kept)
{
	remember(me, from, ", failed");
	remember(me, to, ", failed, the destination");
	if (is_kept || !me->is_alone) {
		note_range(me, from, 0, 0);
		note_range(me, to, 0, 0);
		return;
	}
	for (uint32_t i = 0; i < from.count; i++) {
		if (is_there(start_of(me, from) + i * PAGE_BYTES))
			continue;
		*note_at(me, to, i) = *note_at(me, from, i);
		*note_at(me, from, i) = (struct note){0};
	}
	forget_what_is_gone(me, to);
}

/* Over memory that is there. */
static void do_move_over(struct owner *me)
{
	struct range from = pick_movable(me);
	struct range to = pick_movable(me);
	bool is_kept = below(me, 4) == 0;
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (is_kept ? MREMAP_DONTUNMAP : 0);

	from.count = to.count = from.count < to.count ? from.count : to.count;
	if (!from.count || !are_apart(from, to))
		return;
	announce(me, is_kept ? CHANGING : LEAVING, from, to, false);
	char *start =
		mremap(start_of(me, from), bytes_of(from), bytes_of(to), flags, start_of(me, to));
	begin_settling();
	if (start == MAP_FAILED) {
		CHECK_STEP(me, errno == EFAULT || errno == EINVAL || errno == ENOMEM, "mremap");
		note_failed_move(me, from, to, is_kept);
	} else {
		move_notes(me, from, to, is_kept);
	}
	settle(me);
}

/* Several mappings in one call: since Linux 6.17, and not if they are registered. */
static void do_move_several(struct owner *me)
{
	struct range from = not_of_heap(me, pick_any(me, IS_MAPPED, 0, false));
	struct range to = {.area = free_area(me), .count = from.count};

	if (!from.count || to.area == AREAS)
		return;
	announce(me, LEAVING, from, to, true);
	char *place = mmap(NULL, bytes_of(to), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK_STEP(me, place != MAP_FAILED, "mmap");
	char *start = mremap(start_of(me, from), bytes_of(from), bytes_of(to),
			     MREMAP_MAYMOVE | MREMAP_FIXED, place);
	begin_settling();
	me->areas[to.area] = (struct area){.start = place, .pages = to.count};
	if (start == MAP_FAILED) {
		CHECK_STEP(me, errno == EFAULT || errno == EINVAL || errno == ENOMEM, "mremap");
		note_range(me, to, 0, IS_MAPPED);
		note_failed_move(me, from, to, false);
	} else {
		move_notes(me, from, to, false);
	}
	settle(me);
}

/* The pages go elsewhere, and the mapping stays, with zeros. */
static void do_move_out(struct owner *me)
{
	struct range from = pick_movable(me);
	struct range to = {.area = free_area(me), .count = from.count};

	if (!from.count || to.area == AREAS ||
	    count_pages(me, IS_MAPPED) + to.count > OWNED_PAGES_MAX)
		return;
	announce(me, CHANGING, from, (struct range){0}, true);
	char *start = mremap(start_of(me, from), bytes_of(from), bytes_of(from),
			     MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
	begin_settling();
	if (start == MAP_FAILED) {
		CHECK_STEP(me, errno == EFAULT || errno == EINVAL || errno == ENOMEM, "mremap");
	} else {
		me->areas[to.area] = (struct area){.start = start, .pages = to.count};
		move_notes(me, from, to, true);
	}
	settle(me);
}

/* ------------------------------------------------------------------ advice, protection, locks */

static void advise(struct owner *me, struct range range, int advice)
{
	CHECK_STEP(me, madvise(start_of(me, range), bytes_of(range), advice) == 0, "madvise");
}

static void do_discard(struct owner *me)
{
	bool is_any = below(me, 4) == 0;
	struct range range = pick_wide(me, IS_MAPPED, is_any ? 0 : IS_LOCKED);

	if (!range.count)
		return;
	announce_change(me, range);
	advise(me, range, is_any ? MADV_DONTNEED_LOCKED : MADV_DONTNEED);
	begin_settling();
	note_discarded(me, range);
	settle(me);
}

static void do_free(struct owner *me)
{
	struct range range = pick_wide(me, IS_MAPPED, IS_LOCKED | IS_FILE);

	if (!range.count)
		return;
	announce_change(me, range);
	advise(me, range, MADV_FREE);
	begin_settling();
	mark_range(me, range, IS_LAZY, 0);
	settle(me);
}

static void do_fork_advice(struct owner *me)
{
	static const struct {
		int advice;
		const char *name;
		uint64_t set, clear;
	} kinds[] = {
		{MADV_WIPEONFORK, ", wipe", IS_WIPED, 0},
		{MADV_KEEPONFORK, ", keep", 0, IS_WIPED},
		{MADV_DONTFORK, ", withhold", IS_WITHHELD, 0},
		{MADV_DOFORK, ", leave", 0, IS_WITHHELD},
	};
	struct range range = pick_wide(me, IS_MAPPED, IS_FILE);
	uint64_t kind = below(me, ARRAY_COUNT(kinds));

	if (!range.count || (kinds[kind].set == IS_WIPED && has_bare_children))
		return;
	announce_change(me, range);
	remember(me, range, kinds[kind].name);
	advise(me, range, kinds[kind].advice);
	begin_settling();
	mark_range(me, range, kinds[kind].set, kinds[kind].clear);
	settle(me);
}

/* What changes nothing, whether it succeeds or not. */
static void do_harmless_advice(struct owner *me)
{
	static const struct {
		int advice;
		const char *name;
	} kinds[] = {
		{MADV_HUGEPAGE, ", huge"},
		{MADV_NOHUGEPAGE, ", not huge"},
		{MADV_COLLAPSE, ", collapse"},
		{MADV_COLD, ", cold"},
		{MADV_PAGEOUT, ", page out"},
		{MADV_WILLNEED, ", will need"},
		{MADV_POPULATE_READ, ", populate for reading"},
		{MADV_POPULATE_WRITE, ", populate for writing"},
		{MADV_RANDOM, ", random"},
		{MADV_NORMAL, ", normal"},
		{MADV_REMOVE, ", remove, refused"},
	};
	struct range range = pick_wide(me, IS_MAPPED, 0);
	uint64_t kind = below(me, ARRAY_COUNT(kinds));

	remember(me, range, kinds[kind].name);
	if (!range.count)
		return;
	if (below(me, 10))
		madvise(start_of(me, range), bytes_of(range), kinds[kind].advice);
	else
		prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, start_of(me, range), bytes_of(range),
		      below(me, 2) ? "fuzz" : NULL);
}

static void do_guard(struct owner *me)
{
	struct range range = pick_wide(me, IS_MAPPED, IS_LOCKED | IS_FILE);
	bool is_install = below(me, 2);

	if (!range.count)
		return;
	announce_change(me, range);
	remember(me, range, is_install ? ", install" : ", remove");
	if (is_install)
		advise(me, range, MADV_DONTNEED);
	int failed = madvise(start_of(me, range), bytes_of(range),
			     is_install ? MADV_GUARD_INSTALL : MADV_GUARD_REMOVE);
	CHECK_STEP(me, !failed || errno == EINVAL, "madvise"); // before Linux 6.13
	begin_settling();
	if (is_install)
		note_discarded(me, range);
	if (!failed)
		mark_range(me, range, is_install ? IS_GUARD : 0, is_install ? 0 : IS_GUARD);
	settle(me);
}

static void do_protect(struct owner *me)
{
	static const struct {
		int protection;
		uint64_t is;
	} kinds[] = {
		{PROT_NONE, 0},
		{PROT_READ, IS_READABLE},
		{PROT_READ | PROT_WRITE, IS_READABLE | IS_WRITABLE},
		{PROT_READ | PROT_WRITE, IS_READABLE | IS_WRITABLE},
	};
	struct range range = pick_wide(me, IS_MAPPED, 0);
	uint64_t kind = below(me, ARRAY_COUNT(kinds));

	if (!range.count)
		return;
	announce_change(me, range);
	CHECK_STEP(me, mprotect(start_of(me, range), bytes_of(range), kinds[kind].protection) == 0,
		   "mprotect");
	begin_settling();
	mark_range(me, range, kinds[kind].is, IS_READABLE | IS_WRITABLE);
	settle(me);
}

static void do_lock(struct owner *me)
{
	struct range range = pick_wide(me, IS_MAPPED | IS_READABLE, IS_GUARD);
	bool is_lock = below(me, 3);
	unsigned int flags = below(me, 2) ? MLOCK_ONFAULT : 0;

	if (range.count > 16)
		range.count = 16;
	if (!range.count || (is_lock && count_pages(me, IS_LOCKED) > LOCKED_PAGES_MAX))
		return;
	announce_change(me, range);
	bool is_locked = is_lock && mlock2(start_of(me, range), bytes_of(range), flags) == 0;
	if (!is_locked)
		CHECK_STEP(me, munlock(start_of(me, range), bytes_of(range)) == 0, "munlock");
	begin_settling();
	mark_range(me, range, is_locked ? IS_LOCKED : 0, IS_LOCKED);
	settle(me);
}

/* ------------------------------------------------------------------ the kernel reads and writes */

static void do_read_for_kernel(struct owner *me, struct range range, char *buffer)
{
	struct iovec there = {start_of(me, range), bytes_of(range)};
	struct iovec here = {buffer, bytes_of(range)};
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	CHECK_STEP(me, fd >= 0, "memfd_create");
	if (below(me, 2) || process_vm_readv(getpid(), &here, 1, &there, 1, 0) < 0) {
		CHECK_STEP(me,
			   pwrite(fd, there.iov_base, there.iov_len, 0) == (ssize_t)there.iov_len,
			   "write");
		CHECK_STEP(me, pread(fd, buffer, here.iov_len, 0) == (ssize_t)here.iov_len, "read");
	}
	close(fd);
	for (uint32_t i = 0; i < range.count; i++)
		check_page(me, buffer + i * PAGE_BYTES, note_at(me, range, i)->stamp,
			   note_at(me, range, i)->is & IS_LAZY, "my written");
}

static void do_write_by_kernel(struct owner *me, struct range range, char *buffer)
{
	struct iovec there = {start_of(me, range), bytes_of(range)};
	struct iovec here = {buffer, bytes_of(range)};
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	CHECK_STEP(me, fd >= 0, "memfd_create");
	announce_change(me, range);
	for (uint32_t i = 0; i < range.count; i++) {
		struct note *note = note_at(me, range, i);

		*note = (struct note){new_stamp(), note->is & ~(uint64_t)IS_LAZY, note->without};
		stamp_page(buffer + i * PAGE_BYTES, note->stamp);
	}
	if (below(me, 2) || process_vm_writev(getpid(), &here, 1, &there, 1, 0) < 0) {
		CHECK_STEP(me, pwrite(fd, buffer, here.iov_len, 0) == (ssize_t)here.iov_len,
			   "write");
		CHECK_STEP(me,
			   pread(fd, there.iov_base, there.iov_len, 0) == (ssize_t)there.iov_len,
			   "read");
	}
	begin_settling();
	settle(me);
	close(fd);
}

static void do_io(struct owner *me)
{
	char buffer[IO_PAGES * PAGE_BYTES];
	bool is_read = below(me, 2);
	struct range range = pick(me, IS_MAPPED | (is_read ? IS_READABLE : IS_WRITABLE), IS_GUARD);

	if (range.count > IO_PAGES)
		range.count = IO_PAGES;
	if (range.count && is_read)
		do_read_for_kernel(me, range, buffer);
	else if (range.count)
		do_write_by_kernel(me, range, buffer);
}

static bool is_open(uint64_t is, uint64_t for_what)
{
	return (is & (IS_MAPPED | for_what | IS_GUARD)) == (IS_MAPPED | for_what);
}

/* The pages before one that cannot be read or written, and that one. Count 0: none. */
static struct range pick_edge(struct owner *me, uint64_t for_what)
{
	for (int tries = 0; tries < 12; tries++) {
		struct range range = pick_any(me, IS_MAPPED, 0, false);

		for (uint32_t i = 0; i < range.count; i++) {
			struct range edge = {range.area, range.first + i, 1};

			if (is_open(note_at(me, edge, 0)->is, for_what))
				continue;
			while (edge.count < IO_PAGES && edge.first &&
			       is_open(me->notes[edge.area][edge.first - 1].is, for_what)) {
				edge.first--;
				edge.count++;
			}
			return edge;
		}
	}
	return (struct range){0};
}

/* Cut a range in vectors of any size. */
static int cut(struct owner *me, struct range range, struct iovec *vectors)
{
	size_t done = 0, all = bytes_of(range);
	int count = 0;

	while (done < all) {
		size_t bytes = below(me, 2 * PAGE_BYTES) + 1;

		if (bytes > all - done || count + 1 == IO_PAGES)
			bytes = all - done;
		vectors[count++] = (struct iovec){start_of(me, range) + done, bytes};
		done += bytes;
	}
	return count;
}

/* A call that meets something inaccessible does what comes before, and says how much. */
static void do_io_edge(struct owner *me)
{
	char buffer[IO_PAGES * PAGE_BYTES] = {0};
	bool is_read = below(me, 2);
	struct range range = pick_edge(me, is_read ? IS_READABLE : IS_WRITABLE);
	struct iovec vectors[IO_PAGES];

	if (!range.count)
		return;
	ssize_t expected = (ssize_t)bytes_of(range) - (ssize_t)PAGE_BYTES;
	int fd = memfd_create("fuzz", MFD_CLOEXEC), count = cut(me, range, vectors);
	CHECK_STEP(me, fd >= 0, "memfd_create");
	announce_change(me, range);
	range.count--;
	for (uint32_t i = 0; !is_read && i < range.count; i++) {
		struct note *note = note_at(me, range, i);

		*note = (struct note){new_stamp(), note->is & ~(uint64_t)IS_LAZY, note->without};
		stamp_page(buffer + i * PAGE_BYTES, note->stamp);
	}
	if (!is_read)
		CHECK_STEP(me, pwrite(fd, buffer, sizeof(buffer), 0) == sizeof(buffer), "write");
	errno = 0;
	ssize_t done = is_read ? pwritev(fd, vectors, count, 0) : preadv(fd, vectors, count, 0);
	CHECK_STEP(me, done == expected || (!expected && done < 0 && errno == EFAULT), "edge");
	begin_settling();
	settle(me);
	if (is_read)
		CHECK_STEP(me, pread(fd, buffer, (size_t)expected, 0) == expected, "read");
	for (uint32_t i = 0; is_read && i < range.count; i++)
		check_page(me, buffer + i * PAGE_BYTES, note_at(me, range, i)->stamp,
			   note_at(me, range, i)->is & IS_LAZY, "my written");
	close(fd);
}

/* ------------------------------------------------------------------ signals */

static void on_signal(int number)
{
	volatile uint64_t words[2 * PAGE_WORDS];

	for (size_t word = 0; word < ARRAY_COUNT(words); word++)
		words[word] = mix(word);
	usleep(50);
	for (size_t word = 0; word < ARRAY_COUNT(words); word++)
		CHECK(words[word] == mix(word), "signal %d: word %zu of its stack", number, word);
}

/* The kernel writes the frame of a handler to memory that may be out. */
static void do_signal(struct owner *me)
{
	struct range range = pick_wide(me, IS_MAPPED | IS_READABLE | IS_WRITABLE, IS_GUARD);
	stack_t stack = {.ss_sp = start_of(me, range), .ss_size = bytes_of(range)};
	stack_t none = {.ss_flags = SS_DISABLE};

	if (range.count < STACK_PAGES_MIN)
		return;
	announce_change(me, range);
	CHECK_STEP(me, sigaltstack(&stack, NULL) == 0, "sigaltstack");
	raise(SIGUSR1);
	CHECK_STEP(me, sigaltstack(&none, NULL) == 0, "sigaltstack");
	write_range(me, range);
}

/* ------------------------------------------------------------------ heap */

static void check_block(struct owner *me, uint32_t block)
{
	const uint64_t *words = (const uint64_t *)(const void *)me->blocks[block];
	size_t count = me->block_bytes[block] / sizeof(uint64_t);

	for (size_t word = 0; word < count; word += PAGE_WORDS / 4)
		CHECK(words[word] == me->block_stamps[block] + word,
		      "seed %lu, thread %u of depth %u, step %u (%s): block at %p, word %zu: found "
		      "%#lx, expected %#lx",
		      seed, me->number, depth, me->step, me->step_name, (const void *)words, word,
		      words[word], me->block_stamps[block] + word);
}

static void change_block(struct owner *me, uint32_t block)
{
	size_t bytes = below(me, 4) ? (below(me, 160) + 1) * PAGE_BYTES : below(me, 4000);

	bytes &= ~(size_t)7;
	check_block(me, block);
	char *grown = realloc(me->blocks[block], bytes + 8);
	CHECK_STEP(me, grown, "realloc");
	if (me->block_bytes[block] > bytes || !me->blocks[block])
		me->block_bytes[block] = me->blocks[block] ? bytes : 0;
	me->blocks[block] = grown;
	check_block(me, block);
	me->block_bytes[block] = bytes;
	me->block_stamps[block] = new_stamp() << 20;
	for (size_t word = 0; word < bytes / sizeof(uint64_t); word += PAGE_WORDS / 4)
		((uint64_t *)(void *)grown)[word] = me->block_stamps[block] + word;
}

/* Blocks of several threads are neighbours: one is freed while another grows into its place. */
static void do_realloc(struct owner *me)
{
	if (!me->may_allocate)
		return;
	announce(me, NOTHING, (struct range){0}, (struct range){0}, true);
	for (int i = 0; i < 16; i++) {
		uint32_t block = (uint32_t)below(me, BLOCKS);

		if (below(me, 3)) {
			change_block(me, block);
			continue;
		}
		check_block(me, block);
		free(me->blocks[block]);
		me->blocks[block] = NULL;
		me->block_bytes[block] = 0;
	}
	begin_settling();
	settle(me);
}

/* More at the end of the heap, or less, if it is ours. */
static void do_brk(struct owner *me)
{
	struct range range = {.count = some_pages(me, 64)};
	char *end = sbrk(0);

	if (!me->is_alone)
		return;
	while (range.area < AREAS &&
	       !(me->areas[range.area].start && me->areas[range.area].is_heap))
		range.area++;
	if (range.area == AREAS) {
		range.area = free_area(me);
		size_t rest = -(uintptr_t)end % PAGE_BYTES;
		if (range.area == AREAS || sbrk((intptr_t)rest) == (void *)-1)
			return;
		me->areas[range.area] = (struct area){.start = end + rest, .is_heap = true};
		end += rest;
	}
	struct area *area = &me->areas[range.area];
	if (end != area->start + area->pages * PAGE_BYTES)
		return; // malloc(3) has taken more, behind it
	if (area->pages >= range.count && below(me, 3) == 0) {
		CHECK_STEP(me, sbrk(-(intptr_t)bytes_of(range)) == end, "sbrk");
		area->pages -= range.count;
	} else if (area->pages + range.count <= AREA_PAGES) {
		CHECK_STEP(me, sbrk((intptr_t)bytes_of(range)) == end, "sbrk");
		range.first = area->pages;
		area->pages += range.count;
		note_range(me, range, 0, IS_MAPPED | IS_READABLE | IS_WRITABLE);
		check_range(me, range);
	}
}

/* ------------------------------------------------------------------ children and threads */

static void live(struct owner *me, uint32_t steps);

/* What the notes say of a page is another thing in a child. */
static void inherit_note(struct owner *me, const struct owner *owner, struct note *note,
			 const char *page)
{
	if (!(note->is & IS_MAPPED))
		return;
	if (note->is & IS_WITHHELD) {
		CHECK_STEP(me, owner != me || !is_there(page), "it is there, after MADV_DONTFORK");
		*note = (struct note){0};
		return;
	}
	if (note->is & IS_LOCKED) // or else it need not be a page of the child's own
		note->is &= ~(uint64_t)IS_LOCKED;
	if (note->is & IS_WIPED) {
		note->stamp = 0;
		note->is &= ~(uint64_t)(IS_LAZY | IS_GUARD);
	}
}

static bool is_in(struct range range, uint32_t area, uint32_t page)
{
	return range.area == area && page - range.first < range.count;
}

/* What the call says that another thread was in. The page is to be checked. */
static bool is_certain(const struct owner *owner, uint32_t area, uint32_t page, bool is_alone)
{
	if (owner->doing == NOTHING)
		return true;
	if (is_in(owner->to, area, page))
		return false;
	if (!is_in(owner->from, area, page))
		return true;
	return owner->doing == LEAVING && is_alone &&
	       is_there(owner->areas[area].start + page * PAGE_BYTES);
}

/* Whether nobody but an owner can have mapped anything, from its announcement to the fork. */
static bool is_alone_in_mapping(const struct owner *owner)
{
	for (uint32_t i = 0; i < owner_count; i++)
		if (&owners[i] != owner && owners[i].is_mapping)
			return false;
	return owner->mappings_before == mappings_done;
}

static void inherit(struct owner *me, struct owner *owner)
{
	bool is_alone = is_alone_in_mapping(owner);

	for (uint32_t area = 0; area < AREAS; area++)
		for (uint32_t page = 0; owner->areas[area].start && page < owner->areas[area].pages;
		     page++) {
			struct note *note = &owner->notes[area][page];
			char *start = owner->areas[area].start + page * PAGE_BYTES;

			if (is_certain(owner, area, page, is_alone))
				inherit_note(me, owner, note, start);
			else
				*note = (struct note){0};
		}
}

/* What a child has of the others' memory: nobody changes it any more. */
static void check_others(struct owner *me)
{
	for (uint32_t i = 0; i < owner_count; i++)
		for (uint32_t area = 0; &owners[i] != me && area < AREAS; area++)
			for (uint32_t page = 0;
			     owners[i].areas[area].start && page < owners[i].areas[area].pages;
			     page++) {
				struct note *note = &owners[i].notes[area][page];

				if ((note->is & (IS_MAPPED | IS_READABLE | IS_GUARD)) ==
				    (IS_MAPPED | IS_READABLE))
					check_page(me,
						   owners[i].areas[area].start + page * PAGE_BYTES,
						   note->stamp, note->is & IS_LAZY,
						   "another thread's");
			}
}

static void begin_as_child(struct owner *me, bool is_bare)
{
	depth++;
	for (uint32_t i = 0; i < owner_count; i++)
		inherit(me, &owners[i]);
	for (uint32_t i = 0; i < owner_count; i++) {
		owners[i].doing = NOTHING;
		owners[i].is_mapping = false;
	}
	memset(me->children, 0, sizeof(me->children));
	me->is_alone = true;
	me->may_allocate &= !is_bare;
	me->chance = mix(me->chance + depth);
}

_Noreturn static void live_as_child(struct owner *me, bool is_bare)
{
	begin_as_child(me, is_bare);
	if (below(me, 2))
		check_others(me);
	if (below(me, 2))
		check_all(me);
	live(me, me->steps / CHILD_STEPS);
	check_others(me);
	_exit(0);
}

static void await_child(struct owner *me, uint32_t which)
{
	if (me->children[which])
		expect_child_ok(me->children[which], "child");
	me->children[which] = 0;
}

static bool is_next_bare(struct owner *me)
{
	return has_bare_children && (!me->may_allocate || below(me, 2));
}

static pid_t fork_with_books(struct owner *me, bool is_bare)
{
	pthread_mutex_lock(&books);
	pid_t child = is_bare ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
	pthread_mutex_unlock(&books);
	CHECK_STEP(me, child >= 0, "fork");
	return child;
}

static void do_fork(struct owner *me)
{
	uint32_t which = (uint32_t)below(me, CHILDREN_MAX);
	bool is_bare = is_next_bare(me);

	if (depth >= DEPTH_MAX)
		return;
	await_child(me, which);
	pid_t child = fork_with_books(me, is_bare);
	if (!child)
		live_as_child(me, is_bare);
	me->children[which] = child;
	if (below(me, 2))
		await_child(me, which);
}

struct forker {
	struct owner *me;
	uint64_t chance;
	bool is_bare;
	pid_t child;
	pthread_barrier_t *barrier;
};

static void *fork_beside(void *argument)
{
	struct forker *forker = argument;

	pthread_barrier_wait(forker->barrier);
	forker->child = forker->is_bare ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
	if (!forker->child) {
		pthread_mutex_unlock(&books);
		forker->me->chance = forker->chance;
		live_as_child(forker->me, forker->is_bare);
	}
	return NULL;
}

/* Several threads fork in the same moment. */
static void do_forks(struct owner *me)
{
	struct forker forkers[FORKS_AT_ONCE];
	pthread_t threads[FORKS_AT_ONCE];
	pthread_barrier_t barrier;

	if (depth || !me->may_allocate)
		return;
	pthread_barrier_init(&barrier, NULL, FORKS_AT_ONCE);
	announce(me, NOTHING, (struct range){0}, (struct range){0}, true); // stacks
	pthread_mutex_lock(&books);
	for (uint32_t i = 0; i < FORKS_AT_ONCE; i++) {
		forkers[i] = (struct forker){me, mix(me->chance++), is_next_bare(me), 0, &barrier};
		CHECK_THREAD(pthread_create(&threads[i], NULL, fork_beside, &forkers[i]));
	}
	for (uint32_t i = 0; i < FORKS_AT_ONCE; i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	settle(me);
	pthread_barrier_destroy(&barrier);
	for (uint32_t i = 0; i < FORKS_AT_ONCE; i++)
		CHECK_STEP(me, forkers[i].child > 0, "fork");
	for (uint32_t i = 0; i < FORKS_AT_ONCE; i++)
		expect_child_ok(forkers[i].child, "one of several children");
}

/* A grandchild that lives on when its parent has ended: its main() waits for it at the end. */
static void do_orphan(struct owner *me)
{
	bool is_bare = is_next_bare(me);

	if (depth)
		return;
	pid_t child = fork_with_books(me, is_bare);
	if (child) {
		expect_child_ok(child, "parent of an orphan");
		return;
	}
	begin_as_child(me, is_bare);
	if (below(me, 2))
		check_all(me);
	atomic_fetch_add(orphans_begun, 1);
	is_bare = is_next_bare(me);
	if (fork_with_books(me, is_bare))
		_exit(0);
	begin_as_child(me, is_bare);
	live(me, me->steps / CHILD_STEPS);
	check_others(me);
	atomic_fetch_add(orphans_done, 1);
	_exit(0);
}

static void await_orphans(void)
{
	char none;

	close(orphans_end[1]);
	CHECK(read(orphans_end[0], &none, 1) == 0, "read: %s", strerror(errno));
	CHECK(atomic_load(orphans_begun) == atomic_load(orphans_done),
	      "seed %lu: of %lu orphans %lu have come to their end", seed,
	      atomic_load(orphans_begun), atomic_load(orphans_done));
}

static void exchange(struct owner *me, pid_t other, struct range range, char *buffer, bool is_write)
{
	struct iovec here = {buffer, bytes_of(range)};
	struct iovec there = {start_of(me, range), bytes_of(range)};
	ssize_t done = is_write ? process_vm_writev(other, &here, 1, &there, 1, 0)
				: process_vm_readv(other, &here, 1, &there, 1, 0);

	CHECK_STEP(me, done == (ssize_t)here.iov_len, "process_vm_readv or process_vm_writev");
}

static void check_buffer(struct owner *me, struct range range, const char *buffer,
			 const char *whose)
{
	for (uint32_t i = 0; i < range.count; i++)
		check_page(me, buffer + i * PAGE_BYTES, note_at(me, range, i)->stamp,
			   note_at(me, range, i)->is & IS_LAZY, whose);
}

/* What a child has in a range is what its parent had; a parent writes there and its child looks. */
_Noreturn static void be_looked_at(struct owner *me, struct range range, bool is_bare, int fd,
				   uint64_t stamp)
{
	char buffer[IO_PAGES * PAGE_BYTES], none;
	struct range rest = range;

	CHECK_STEP(me, read(fd, &none, 1) == 1, "read");
	if (stamp)
		for (uint32_t i = 0; i < range.count; i++)
			check_page(me, start_of(me, range) + i * PAGE_BYTES, stamp, false,
				   "my parent's");
	exchange(me, getppid(), range, buffer, false);
	check_buffer(me, range, buffer, "my parent's");
	begin_as_child(me, is_bare);
	if (stamp)
		note_range(me, rest, stamp, note_at(me, rest, 0)->is & IS_MAPPED);
	check_all(me);
	_exit(0);
}

static void do_look_at_child(struct owner *me)
{
	struct range range = pick(me, IS_MAPPED | IS_READABLE, IS_GUARD | IS_WITHHELD | IS_WIPED);
	char buffer[IO_PAGES * PAGE_BYTES];
	bool is_bare = is_next_bare(me);
	int ends[2];

	if (depth >= DEPTH_MAX || !range.count)
		return;
	if (range.count > IO_PAGES)
		range.count = IO_PAGES;
	uint64_t stamp = note_at(me, range, 0)->is & IS_WRITABLE && below(me, 2) ? new_stamp() : 0;
	CHECK_STEP(me, pipe2(ends, O_CLOEXEC) == 0, "pipe");
	pid_t child = fork_with_books(me, is_bare);
	if (!child)
		be_looked_at(me, range, is_bare, ends[0], stamp);
	exchange(me, child, range, buffer, false);
	check_buffer(me, range, buffer, "my child's");
	for (uint32_t i = 0; stamp && i < range.count; i++)
		stamp_page(buffer + i * PAGE_BYTES, stamp);
	if (stamp)
		exchange(me, child, range, buffer, true);
	CHECK_STEP(me, write(ends[1], "", 1) == 1, "write");
	expect_child_ok(child, "child that was looked at");
	close(ends[0]);
	close(ends[1]);
}

/* ------------------------------------------------------------------ programs */

/* What a program hands over to the next one: pages of its memory, behind their stamps. */
static int write_state(struct owner *me, struct range range)
{
	uint64_t stamps[AREA_PAGES] = {range.count};
	int fd = memfd_create("state", 0);

	CHECK_STEP(me, fd >= 0, "memfd_create");
	for (uint32_t i = 0; i < range.count; i++)
		stamps[i + 1] = note_at(me, range, i)->stamp;
	CHECK_STEP(me, write(fd, stamps, sizeof(stamps)) == sizeof(stamps), "write");
	CHECK_STEP(me, write(fd, start_of(me, range), bytes_of(range)) == (ssize_t)bytes_of(range),
		   "write");
	return fd;
}

static void check_state(int fd)
{
	uint64_t stamps[AREA_PAGES];

	CHECK(pread(fd, stamps, sizeof(stamps), 0) == sizeof(stamps), "state: %s", strerror(errno));
	size_t bytes = stamps[0] * PAGE_BYTES;
	char *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(pages != MAP_FAILED, "mmap: %s", strerror(errno));
	CHECK(pread(fd, pages, bytes, sizeof(stamps)) == (ssize_t)bytes, "state: %s",
	      strerror(errno));
	close(fd);
	for (size_t i = 0; i < stamps[0]; i++)
		check_page(&owners[0], pages + i * PAGE_BYTES, stamps[i + 1], false,
			   "the last program's");
	munmap(pages, bytes);
}

static void *execute(void *argument)
{
	char **arguments = argument;

	execv(program, arguments);
	fail("%s: %s", program, strerror(errno));
}

static void *look_on(void *argument)
{
	const struct owner *me = argument;

	for (;;)
		for (uint32_t area = 0; area < AREAS; area++)
			for (uint32_t page = 0;
			     me->areas[area].start && page < me->areas[area].pages; page++)
				if (is_open(me->notes[area][page].is, IS_READABLE))
					(void)*(volatile char *)(me->areas[area].start +
								 page * PAGE_BYTES);
	return NULL;
}

/* A program executes the next one in its place, from any of its threads, while others fault. */
_Noreturn static void be_replaced(struct owner *me, struct range range)
{
	char numbers[2][32];
	char *arguments[] = {(char *)program, numbers[0], (char *)"12",
			     (char *)"1",     numbers[1], NULL};
	pthread_t thread;

	begin_as_child(me, false);
	snprintf(numbers[0], sizeof(numbers[0]), "%lu", below(me, UINT32_MAX));
	snprintf(numbers[1], sizeof(numbers[1]), "%d", write_state(me, range));
	for (uint64_t i = below(me, 3); i; i--)
		CHECK_THREAD(pthread_create(&thread, NULL, look_on, me));
	if (below(me, 2))
		execute(arguments);
	CHECK_THREAD(pthread_create(&thread, NULL, execute, arguments));
	for (;;)
		look_on(me);
}

static void do_exec(struct owner *me)
{
	struct range range =
		pick(me, IS_MAPPED | IS_READABLE, IS_GUARD | IS_WITHHELD | IS_WIPED | IS_LAZY);

	if (depth || !me->may_allocate || !range.count || range.count >= AREA_PAGES)
		return;
	pid_t child = fork_with_books(me, false);
	if (!child)
		be_replaced(me, range);
	expect_child_ok(child, "replaced");
}

/* Another process that has nothing of this one, while this one waits for it or does not. */
static void do_spawn(struct owner *me)
{
	char text[32];
	char *arguments[] = {(char *)program, text, (char *)"24", (char *)"1", NULL};
	pid_t child;

	if (depth || !me->may_allocate)
		return;
	snprintf(text, sizeof(text), "%lu", below(me, UINT32_MAX));
	announce(me, NOTHING, (struct range){0}, (struct range){0}, true); // its stack
	int error = posix_spawn(&child, program, NULL, NULL, arguments, environ);
	begin_settling();
	settle(me);
	CHECK(!error, "posix_spawn: %s", strerror(error));
	expect_child_ok(child, "spawned");
}

/* A child in its parent's memory, with faults of a process that is not the target's. */
_Noreturn static void live_in_vfork(struct owner *me, struct range range, uint64_t stamp,
				    volatile bool *is_right, char **arguments)
{
	for (uint32_t i = 0; i < range.count; i++) {
		const struct note *note = note_at(me, range, i);
		volatile uint64_t *word = (void *)(start_of(me, range) + i * PAGE_BYTES);

		if (!(note->is & IS_LAZY) && *word != note->stamp)
			*is_right = false;
		if (stamp)
			stamp_page((void *)(uintptr_t)word, stamp);
	}
	if (arguments)
		execv(program, arguments);
	_exit(arguments != NULL);
}

static void do_vfork(struct owner *me)
{
	bool is_write = below(me, 2), is_exec = !depth && below(me, 3) == 0;
	struct range range =
		pick_wide(me, IS_MAPPED | IS_READABLE | (is_write ? IS_WRITABLE : 0), IS_GUARD);
	uint64_t stamp = is_write ? new_stamp() : 0;
	volatile bool is_right = true;
	char text[32];
	char *arguments[] = {(char *)program, text, (char *)"12", (char *)"1", NULL};

	snprintf(text, sizeof(text), "%lu", below(me, UINT32_MAX));
	announce_change(me, range);
	pid_t child = vfork();
	if (!child)
		live_in_vfork(me, range, stamp, &is_right, is_exec ? arguments : NULL);
	CHECK_STEP(me, child > 0, "vfork");
	CHECK(is_right, "seed %lu, thread %u, step %u: a vfork child has read something else", seed,
	      me->number, me->step);
	begin_settling();
	for (uint32_t i = 0; stamp && i < range.count; i++) {
		note_at(me, range, i)->stamp = stamp;
		note_at(me, range, i)->is &= ~(uint64_t)IS_LAZY;
	}
	settle(me);
	expect_child_ok(child, "vfork");
}

static void *use_stack(void *argument)
{
	char pages[8 * PAGE_BYTES];
	struct owner *me = argument;
	uint64_t stamp = new_stamp();

	for (size_t i = 0; i < sizeof(pages) / PAGE_BYTES; i++)
		stamp_page(pages + i * PAGE_BYTES, stamp);
	usleep((useconds_t)(stamp % 400));
	for (size_t i = 0; i < sizeof(pages) / PAGE_BYTES; i++)
		check_page(me, pages + i * PAGE_BYTES, stamp, false, "my stack");
	return NULL;
}

/* Several threads at once, so many times. */
static void run_threads(struct owner *me, void *(*run)(void *), size_t count, int rounds)
{
	pthread_t threads[4];

	CHECK(count <= ARRAY_COUNT(threads), "%zu threads", count);
	if (!me->may_allocate)
		return;
	announce(me, NOTHING, (struct range){0}, (struct range){0}, true);
	for (int round = 0; round < rounds; round++) {
		for (size_t i = 0; i < count; i++)
			CHECK_THREAD(pthread_create(&threads[i], NULL, run, me));
		for (size_t i = 0; i < count; i++)
			CHECK_THREAD(pthread_join(threads[i], NULL));
	}
	begin_settling();
	settle(me);
}

static void do_thread(struct owner *me)
{
	run_threads(me, use_stack, 3, 1);
}

/* A frame as large as can be, of which little is touched, or all. */
static void *use_frame(void *argument)
{
	struct owner *me = argument;
	uint64_t stamp = new_stamp();
	size_t pages = stamp % FRAME_PAGES_MAX + 1, step = stamp % 7 + 1;
	char *frame = alloca(pages * PAGE_BYTES);

	for (size_t i = 0; i < pages; i += step)
		stamp_page(frame + i * PAGE_BYTES, stamp);
	for (size_t i = 0; i < pages; i += step)
		check_page(me, frame + i * PAGE_BYTES, stamp, false, "my frame");
	return NULL;
}

/* Threads that hardly live. */
static void do_threads(struct owner *me)
{
	run_threads(me, use_frame, 4, 6);
}

static void do_rest(struct owner *me)
{
	usleep((useconds_t)below(me, 2000));
}

/* ------------------------------------------------------------------ all of it */

static const struct {
	const char *name;
	void (*run)(struct owner *me);
	uint32_t weight;
} steps_known[] = {
	{"check", do_check, 20},
	{"write", do_write, 20},
	{"map", do_map, 8},
	{"map huge", do_map_huge, 1},
	{"map file", do_map_file, 3},
	{"unmap", do_unmap, 5},
	{"replace", do_replace, 4},
	{"resize", do_resize, 8},
	{"move over", do_move_over, 5},
	{"move out", do_move_out, 3},
	{"move several", do_move_several, 1},
	{"discard", do_discard, 5},
	{"free", do_free, 3},
	{"fork advice", do_fork_advice, 3},
	{"advice", do_harmless_advice, 8},
	{"guard", do_guard, 4},
	{"protect", do_protect, 5},
	{"lock", do_lock, 3},
	{"io", do_io, 6},
	{"io edge", do_io_edge, 3},
	{"signal", do_signal, 3},
	{"realloc", do_realloc, 3},
	{"brk", do_brk, 3},
	{"fork", do_fork, 3},
	{"forks", do_forks, 1},
	{"orphan", do_orphan, 1},
	{"look at child", do_look_at_child, 2},
	{"spawn", do_spawn, 1},
	{"exec", do_exec, 1},
	{"vfork", do_vfork, 2},
	{"thread", do_thread, 2},
	{"threads", do_threads, 1},
	{"rest", do_rest, 4},
};

static void do_step(struct owner *me)
{
	uint32_t all = 0;
	size_t kind = 0;

	for (size_t i = 0; i < ARRAY_COUNT(steps_known); i++)
		all += steps_known[i].weight;
	for (uint64_t left = below(me, all); left >= steps_known[kind].weight; kind++)
		left -= steps_known[kind].weight;
	me->step++;
	me->step_name = steps_known[kind].name;
	steps_known[kind].run(me);
}

static void live(struct owner *me, uint32_t steps)
{
	for (uint32_t step = 0; step < steps; step++)
		do_step(me);
	me->step_name = "end";
	check_all(me);
	for (uint32_t i = 0; i < CHILDREN_MAX; i++)
		await_child(me, i);
}

static void *live_as_thread(void *argument)
{
	struct owner *me = argument;

	live(me, me->steps / GENERATIONS);
	return NULL;
}

/* Private memory of a file. */
static void open_books(void)
{
	size_t bytes = sizeof(*owners) * OWNERS_MAX;
	int fd = memfd_create("books", MFD_CLOEXEC);

	CHECK_CALL(fd);
	CHECK_CALL(ftruncate(fd, (off_t)bytes));
	owners = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(owners != MAP_FAILED, "mmap: %s", strerror(errno));
	close(fd);
	last_stamp =
		mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(last_stamp != MAP_FAILED, "mmap: %s", strerror(errno));
	orphans_begun = last_stamp + 1;
	orphans_done = last_stamp + 2;
	atomic_store(last_stamp, mix(seed) << 24 >> 4);
}

static void open_file(void)
{
	char page[PAGE_BYTES];

	file = memfd_create("file", MFD_CLOEXEC);
	CHECK_CALL(file);
	file_stamp = atomic_fetch_add(last_stamp, AREA_PAGES) + 1;
	for (uint32_t i = 0; i < AREA_PAGES; i++) {
		stamp_page(page, file_stamp + i);
		CHECK_CALL(pwrite(file, page, PAGE_BYTES, (off_t)(i * PAGE_BYTES)));
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
	pthread_t threads[OWNERS_MAX];

	CHECK(argc >= 2, "usage: %s SEED [STEPS [THREADS [STATE]]]", argv[0]);
	program = argv[0];
	seed = strtoull(argv[1], NULL, 0);
	owner_count =
		(uint32_t)(argc > 3 ? strtoull(argv[3], NULL, 0) : 1 + mix(seed) % OWNERS_MAX);
	CHECK(owner_count && owner_count <= OWNERS_MAX, "1 to %u threads", OWNERS_MAX);
	has_bare_children = mix(seed) / OWNERS_MAX % 2;
	open_books();
	open_file();
	CHECK_CALL(pipe2(orphans_end, O_CLOEXEC));
	CHECK_CALL(sigaction(SIGUSR1, &action, NULL));
	if (argc > 4)
		check_state(atoi(argv[4]));
	for (uint32_t i = 0; i < owner_count; i++) {
		owners[i].number = i;
		owners[i].chance = mix(seed * OWNERS_MAX + i);
		owners[i].steps = (uint32_t)(argc > 2 ? strtoull(argv[2], NULL, 0) : 400);
		owners[i].is_alone = owner_count == 1;
		owners[i].may_allocate = true;
	}
	for (uint32_t generation = 0; generation < GENERATIONS; generation++) {
		pthread_mutex_lock(&books); // their stacks are mapped before anybody begins
		for (uint32_t i = 0; i < owner_count; i++)
			CHECK_THREAD(pthread_create(&threads[i], NULL, live_as_thread, &owners[i]));
		pthread_mutex_unlock(&books);
		for (uint32_t i = 0; i < owner_count; i++)
			CHECK_THREAD(pthread_join(threads[i], NULL));
	}
	await_orphans();
	dprintf(STDOUT_FILENO, "ok: seed %lu, %u threads\n", seed, owner_count);
	return 0;
}
