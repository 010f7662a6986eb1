// SPDX-License-Identifier: MIT

/**
 * @file
 * Life of a mapping: what unmap, madvise, brk, mremap, mprotect and mlock must do to evicted memory,
 * and what it must not do to guards.
 *
 * Each check brings a range out of memory, does one thing to it, and compares with what the same
 * call does to memory that is present. Run bare, the checks test themselves.
 */

#include "program.h"

#include <setjmp.h>
#include <sys/resource.h>
#include <sys/shm.h>

#define PAGES 1536ul /* 6 MiB */

#ifndef MADV_GUARD_INSTALL /* 6.13 */
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

/* ------------------------------------------------------------------ accesses that may fault */

static sigjmp_buf after_fault;

static void on_fault(int signal)
{
	siglongjmp(after_fault, signal);
}

static void catch_faults(void)
{
	struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};

	CHECK_CALL(sigaction(SIGSEGV, &action, NULL));
	CHECK_CALL(sigaction(SIGBUS, &action, NULL));
}

/* The signal that a write to this address raises, 0 if it succeeds. */
static int write_signal(volatile uint64_t *address)
{
	int caught = sigsetjmp(after_fault, 1);

	if (!caught)
		*address = *address;
	return caught;
}

static int read_signal(const volatile uint64_t *address)
{
	int caught = sigsetjmp(after_fault, 1);

	if (!caught)
		(void)*address;
	return caught;
}

/* ------------------------------------------------------------------ unmap and discard */

static void check_munmap(void)
{
	size_t third = PAGES / 3;
	char *start = evicted_pages(PAGES, seed);
	void *hole = page_at(start, third);
	void *again;

	unmap_pages(hole, third);
	verify(start, third, seed, 0, "before the hole");
	verify(page_at(start, 2 * third), third, seed, 2 * third, "after the hole");
	again = mmap(hole, third * PAGE_BYTES, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK(again == hole, "the hole is not free: %s", strerror(errno));
	verify_zero(hole, third, "new mapping in the hole");
	fill(hole, third, seed + 1, 0);
	evict(start, PAGES);
	verify(start, third, seed, 0, "before the hole, again");
	verify(hole, third, seed + 1, 0, "in the hole");
	verify(page_at(start, 2 * third), third, seed, 2 * third, "after the hole, again");
}

/* Blocks of 48 pages, every other one thrown away. */
static void check_dontneed(void)
{
	char *start = evicted_pages(PAGES, seed);

	for (size_t page = 0; page < PAGES; page += 96)
		CHECK_CALL(madvise(page_at(start, page), 48 * PAGE_BYTES, MADV_DONTNEED));
	for (size_t page = 0; page < PAGES; page += 96) {
		verify_zero(page_at(start, page), 48, "after MADV_DONTNEED");
		verify(page_at(start, page + 48), 48, seed, page + 48, "beside MADV_DONTNEED");
	}
	fill(start, PAGES, seed + 1, 0);
	evict(start, PAGES);
	verify(start, PAGES, seed + 1, 0, "rewritten");
}

/* Thrown away while present, then pressed: what was stored for the page before must not return. */
static void check_dontneed_present(void)
{
	char *start = evicted_pages(PAGES, seed);

	verify(start, 512, seed, 0, "brought back");
	CHECK_CALL(madvise(start, 512 * PAGE_BYTES, MADV_DONTNEED));
	press();
	press();
	verify_zero(start, 512, "after MADV_DONTNEED and pressure");
	verify(page_at(start, 512), PAGES - 512, seed, 512, "the rest");
}

/* A page given up with MADV_FREE holds its old content or zeros, never a mixture. */
static void verify_freed(void *start, size_t pages, const char *what)
{
	for (size_t page = 0; page < pages; page++)
		CHECK(page_is_zero(page_at(start, page)) ||
			      page_holds(page_at(start, page), seed, page),
		      "%s: page %zu is neither old nor zero", what, page);
}

static void check_free(void)
{
	size_t half = PAGES / 2;
	char *start = evicted_pages(PAGES, seed);

	CHECK_CALL(madvise(start, half * PAGE_BYTES, MADV_FREE));
	verify_freed(start, half, "evicted, then MADV_FREE");
	verify(page_at(start, half), half, seed, half, "beside MADV_FREE");
	fill(start, half, seed, 0);
	CHECK_CALL(madvise(start, half * PAGE_BYTES, MADV_FREE));
	press();
	press();
	verify_freed(start, half, "MADV_FREE, then pressure");
	fill(start, half, seed + 1, 0);
	evict(start, half);
	verify(start, half, seed + 1, 0, "rewritten after MADV_FREE");
}

/* Many small mappings side by side, as a heap becomes that grows beside what is registered. */
static void check_patchwork(void)
{
	char *start = map_pages(PAGES);

	for (size_t page = 0; page < PAGES; page += 32)
		CHECK_CALL(madvise(page_at(start, page), 16 * PAGE_BYTES, MADV_DONTDUMP));
	fill(start, PAGES, seed, 0);
	evict(start, PAGES);
	verify(start, PAGES, seed, 0, "a patchwork of mappings");
}

static void check_brk(void)
{
	size_t half = PAGES / 2;
	char *start = sbrk(0);
	char *heap = (char *)(((uintptr_t)start + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1));

	CHECK_CALL(brk(heap + PAGES * PAGE_BYTES));
	fill(heap, PAGES, seed, 0);
	evict(heap, PAGES);
	CHECK_CALL(brk(heap + half * PAGE_BYTES));
	verify(heap, half, seed, 0, "kept by brk down");
	CHECK_CALL(brk(heap + PAGES * PAGE_BYTES));
	verify_zero(page_at(heap, half), half, "fresh from brk up");
	fill(page_at(heap, half), half, seed + 1, half);
	evict(heap, PAGES);
	verify(heap, half, seed, 0, "low half");
	verify(page_at(heap, half), half, seed + 1, half, "high half");
	CHECK_CALL(brk(start));
}

/* ------------------------------------------------------------------ mremap */

static void check_mremap_grow(void)
{
	char *start = evicted_pages(PAGES, seed);

	start = mremap(start, PAGES * PAGE_BYTES, 2 * PAGES * PAGE_BYTES, MREMAP_MAYMOVE);
	CHECK(start != MAP_FAILED, "mremap: %s", strerror(errno));
	verify_zero(page_at(start, PAGES), PAGES, "grown part");
	verify(start, PAGES, seed, 0, "old part");
	fill(page_at(start, PAGES), PAGES, seed, PAGES);
	evict(start, 2 * PAGES);
	verify(start, 2 * PAGES, seed, 0, "all of it");
}

static void check_mremap_shrink(void)
{
	size_t half = PAGES / 2;
	char *start = reserve_pages(PAGES);
	char *grown;

	CHECK(mmap(start, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == start,
	      "mmap: %s", strerror(errno));
	fill(start, PAGES, seed, 0);
	evict(start, PAGES);
	CHECK(mremap(start, PAGES * PAGE_BYTES, half * PAGE_BYTES, 0) == start, "shrink: %s",
	      strerror(errno));
	verify(start, half, seed, 0, "kept part");
	grown = mremap(start, half * PAGE_BYTES, PAGES * PAGE_BYTES, MREMAP_MAYMOVE);
	CHECK(grown != MAP_FAILED, "grow: %s", strerror(errno));
	verify(grown, half, seed, 0, "kept part, grown");
	verify_zero(page_at(grown, half), half, "part that was cut off and added again");
}

static void check_mremap_move(void)
{
	char *start = evicted_pages(PAGES, seed);
	char *target = reserve_pages(PAGES);

	CHECK(mremap(start, PAGES * PAGE_BYTES, PAGES * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
		     target) == target,
	      "mremap: %s", strerror(errno));
	CHECK(mmap(start, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == start,
	      "the old place is not free: %s", strerror(errno));
	verify_zero(start, PAGES, "new mapping at the old place");
	verify(target, PAGES, seed, 0, "moved");
	fill(start, PAGES, seed + 1, 0);
	evict(target, PAGES);
	verify(start, PAGES, seed + 1, 0, "old place");
	verify(target, PAGES, seed, 0, "moved, evicted again");
}

/* Move the middle of a range, so that regions must be cut at both ends. */
static void check_mremap_middle(void)
{
	size_t third = PAGES / 3;
	char *start = evicted_pages(PAGES, seed);
	char *target = reserve_pages(third);

	CHECK(mremap(page_at(start, third), third * PAGE_BYTES, third * PAGE_BYTES,
		     MREMAP_MAYMOVE | MREMAP_FIXED, target) == target,
	      "mremap: %s", strerror(errno));
	evict(target, third);
	verify(start, third, seed, 0, "low third");
	verify(target, third, seed, third, "moved middle");
	verify(page_at(start, 2 * third), third, seed, 2 * third, "high third");
}

static void check_mremap_dontunmap(void)
{
	char *start = evicted_pages(PAGES, seed);
	char *moved = mremap(start, PAGES * PAGE_BYTES, PAGES * PAGE_BYTES,
			     MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);

	CHECK(moved != MAP_FAILED, "mremap: %s", strerror(errno));
	verify_zero(start, PAGES, "the old place, still mapped");
	verify(moved, PAGES, seed, 0, "moved");
	fill(start, PAGES, seed + 1, 0);
	evict(start, PAGES);
	evict(moved, PAGES);
	verify(moved, PAGES, seed, 0, "moved, evicted again");
	verify(start, PAGES, seed + 1, 0, "the old place, rewritten");
}

/* What was evicted at the destination must not shine through. */
static void check_mremap_over(void)
{
	char *target = evicted_pages(PAGES, seed + 1);
	char *start = evicted_pages(PAGES, seed);

	CHECK(mremap(start, PAGES * PAGE_BYTES, PAGES * PAGE_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED,
		     target) == target,
	      "mremap: %s", strerror(errno));
	verify(target, PAGES, seed, 0, "moved over evicted memory");
}

/* ------------------------------------------------------------------ protection and locking */

static void check_mprotect_readonly(void)
{
	char *start = evicted_pages(PAGES, seed);

	catch_faults();
	CHECK_CALL(mprotect(start, PAGES * PAGE_BYTES, PROT_READ));
	CHECK(write_signal((uint64_t *)start) == SIGSEGV,
	      "a write to read-only memory went through");
	verify(start, PAGES, seed, 0, "read-only");
	press();
	press();
	verify(start, PAGES, seed, 0, "read-only under pressure");
	CHECK_CALL(mprotect(start, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE));
	fill(start, PAGES, seed + 1, 0);
	evict(start, PAGES);
	verify(start, PAGES, seed + 1, 0, "writable again");
}

static void check_mprotect_none(void)
{
	char *start = evicted_pages(PAGES, seed);

	catch_faults();
	CHECK_CALL(mprotect(start, PAGES * PAGE_BYTES, PROT_NONE));
	CHECK(read_signal((uint64_t *)start) == SIGSEGV, "a read of PROT_NONE memory went through");
	press();
	CHECK_CALL(mprotect(start, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE));
	verify(start, PAGES, seed, 0, "evicted, PROT_NONE and back");
	CHECK_CALL(mprotect(start, PAGES * PAGE_BYTES, PROT_NONE));
	press();
	CHECK_CALL(mprotect(start, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE));
	verify(start, PAGES, seed, 0, "present, PROT_NONE and back");
}

static void check_mlock(void)
{
	size_t locked = 1024;
	char *start = evicted_pages(PAGES, seed);

	if (mlock(start, locked * PAGE_BYTES))
		skip("mlock of 4 MiB is not allowed (RLIMIT_MEMLOCK)");
	CHECK(present_pages(start, locked) == locked, "mlock left %zu of %zu pages out",
	      locked - present_pages(start, locked), locked);
	press();
	press();
	CHECK(present_pages(start, locked) == locked, "locked memory was evicted: %zu pages",
	      locked - present_pages(start, locked));
	verify(start, PAGES, seed, 0, "locked and not");
	CHECK_CALL(munlock(start, locked * PAGE_BYTES));
	evict(start, PAGES);
	verify(start, PAGES, seed, 0, "unlocked and evicted");
}

/* Locked memory that grows is filled before anybody is told that it has moved. */
static void check_mremap_locked(void)
{
	size_t locked = 256, grown = 1024;
	char *start = evicted_pages(PAGES, seed);
	char *middle = (char *)page_at(start, PAGES / 2);

	if (mlock(middle, locked * PAGE_BYTES))
		skip("mlock of a MiB is not allowed (RLIMIT_MEMLOCK)");
	char *moved = mremap(middle, locked * PAGE_BYTES, grown * PAGE_BYTES, MREMAP_MAYMOVE);
	if (moved == MAP_FAILED && errno == EAGAIN)
		skip("mlock of 4 MiB is not allowed (RLIMIT_MEMLOCK)");
	CHECK(moved != MAP_FAILED, "mremap: %s", strerror(errno));
	verify(start, PAGES / 2, seed, 0, "before what was locked");
	verify(moved, locked, seed, PAGES / 2, "moved");
	verify_zero(moved + locked * PAGE_BYTES, grown - locked, "grown by");
	CHECK_CALL(munlock(moved, grown * PAGE_BYTES));
	fill(moved, grown, seed + 1, 0);
	evict(moved, grown);
	verify(moved, grown, seed + 1, 0, "unlocked and evicted");
}

static void check_populate(void)
{
	char *start = evicted_pages(PAGES, seed);
	size_t populated = 1024;

	if (madvise(start, populated * PAGE_BYTES, MADV_POPULATE_READ))
		skip("MADV_POPULATE_READ is not in this kernel (5.14)");
	verify(start, populated, seed, 0, "MADV_POPULATE_READ");
	evict(start, PAGES);
	CHECK_CALL(madvise(start, populated * PAGE_BYTES, MADV_POPULATE_WRITE));
	verify(start, PAGES, seed, 0, "MADV_POPULATE_WRITE");
}

/* The kernel's own advice on memory that is out, or about to go. */
static void check_cold(void)
{
	char *start = evicted_pages(PAGES, seed);

	CHECK_CALL(madvise(start, PAGES * PAGE_BYTES, MADV_COLD));
	verify(start, PAGES, seed, 0, "MADV_COLD");
	CHECK_CALL(madvise(start, PAGES * PAGE_BYTES, MADV_PAGEOUT));
	press();
	verify(start, PAGES, seed, 0, "MADV_PAGEOUT");
}

/* ------------------------------------------------------------------ kinds of mappings */

static void check_map_fixed(void)
{
	size_t third = PAGES / 3;
	char *start = evicted_pages(PAGES, seed);
	void *middle = page_at(start, third);

	CHECK(mmap(middle, third * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == middle,
	      "MAP_FIXED: %s", strerror(errno));
	verify_zero(middle, third, "mapped over evicted memory");
	verify(start, third, seed, 0, "low third");
	fill(middle, third, seed + 1, 0);
	evict(start, PAGES);
	verify(middle, third, seed + 1, 0, "middle third");
	verify(page_at(start, 2 * third), third, seed, 2 * third, "high third");
}

/* Memory that is not the pager's: shared, and private pages of a file. None may leave. */
static void check_foreign_mappings(void)
{
	size_t pages = 512;
	int file = memfd_create("file", MFD_CLOEXEC);
	char *shared = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char *private;
	pid_t child;

	CHECK_CALL(file);
	CHECK_CALL(ftruncate(file, (off_t)(pages * PAGE_BYTES)));
	private = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
	CHECK(shared != MAP_FAILED && private != MAP_FAILED, "mmap: %s", strerror(errno));
	fill(shared, pages, seed, 0);
	fill(private, pages / 2, seed + 1, 0);
	press();
	press();
	CHECK(present_pages(shared, pages) == pages, "shared memory was evicted");
	CHECK(present_pages(private, pages / 2) == pages / 2, "pages of a file were evicted");
	child = fork();
	CHECK_CALL(child);
	if (!child) {
		verify(shared, pages, seed, 0, "shared, in the child");
		fill(shared, pages, seed + 2, 0);
		_exit(0);
	}
	expect_child_ok(child, "sharing child");
	press();
	verify(shared, pages, seed + 2, 0, "shared, written by the child");
	verify(private, pages / 2, seed + 1, 0, "private pages of a file");
	verify_zero(page_at(private, pages / 2), pages / 2, "untouched pages of a file");
}

/* Private memory by way of /dev/zero is anonymous to the kernel, but cannot be filled from outside. */
static void check_dev_zero(void)
{
	size_t pages = 512;
	char *start = evicted_pages(PAGES, seed);
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC);
	pid_t child;

	CHECK_CALL(zero);
	for (int round = 0; round < 8; round++) {
		/* New each time, near the limit: registered before anybody has seen what it is. */
		char *memory = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE,
				    zero, 0);

		CHECK(memory != MAP_FAILED, "mmap: %s", strerror(errno));
		fill(memory, pages / 2, seed + 1, 0);
		child = fork();
		CHECK_CALL(child);
		if (!child) {
			verify(memory, pages / 2, seed + 1, 0, "/dev/zero in the child");
			fill(memory, pages, seed + 2, 0);
			_exit(0);
		}
		expect_child_ok(child, "child with /dev/zero");
		press();
		verify(memory, pages / 2, seed + 1, 0, "/dev/zero");
		verify_zero(page_at(memory, pages / 2), pages / 2, "end of /dev/zero");
		unmap_pages(memory, pages);
	}
	verify(start, PAGES, seed, 0, "neighbour");
	close(zero);
}

/* A stack-like mapping that grows under our feet, one page at a time. */
static void check_growsdown(void)
{
	size_t pages = 1024;
	char *room;
	char *top;

	press(); /* its ballast must not be mapped in the way later */
	room = reserve_pages(4 * pages);
	top = page_at(room, 3 * pages);
	unmap_pages(room, 4 * pages);
	if (mmap(page_at(top, 0) - PAGE_BYTES, PAGE_BYTES, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_GROWSDOWN, -1,
		 0) == MAP_FAILED)
		skip("MAP_GROWSDOWN is refused");
	for (size_t page = 1; page <= pages; page++)
		fill(top - page * PAGE_BYTES, 1, seed, page);
	press();
	press();
	for (size_t page = 1; page <= 2 * pages; page++) {
		if (page > pages)
			fill(top - page * PAGE_BYTES, 1, seed, page);
		verify(top - page * PAGE_BYTES, 1, seed, page, "grown downwards");
	}
}

static void *map_huge(size_t bytes)
{
	char *start = reserve_pages((bytes + HUGE_BYTES) / PAGE_BYTES);

	start = (char *)(((uintptr_t)start + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
	CHECK_CALL(mprotect(start, bytes, PROT_READ | PROT_WRITE));
	if (madvise(start, bytes, MADV_HUGEPAGE))
		skip("transparent huge pages are not in this kernel");
	return start;
}

static void check_hugepage(void)
{
	char *start = map_huge(PAGES * PAGE_BYTES);

	fill(start, PAGES, seed, 0);
	evict(start, PAGES);
	verify(start, PAGES, seed, 0, "huge pages");
	/* One small hole in each huge page, then out again: part huge, part not. */
	for (size_t page = 7; page < PAGES; page += 512)
		CHECK_CALL(madvise(page_at(start, page), PAGE_BYTES, MADV_DONTNEED));
	evict(start, PAGES);
	for (size_t page = 0; page < PAGES; page++) {
		if (page % 512 == 7)
			verify_zero(page_at(start, page), 1, "hole in a huge page");
		else
			verify(page_at(start, page), 1, seed, page, "broken huge page");
	}
}

static int new_segment(size_t pages)
{
	int id = shmget(IPC_PRIVATE, pages * PAGE_BYTES, IPC_CREAT | 0600);

	if (id < 0)
		skip("System V shared memory is not in this kernel");
	return id;
}

/* shmat() with SHM_REMAP takes the place of memory, and the kernel tells nobody of it. */
static void check_shm_remap(void)
{
	char *start = evicted_pages(PAGES, seed);
	int id = new_segment(PAGES);

	verify(start, PAGES, seed, 0, "before it is replaced");
	CHECK(shmat(id, start, SHM_REMAP) == start, "shmat: %s", strerror(errno));
	CHECK_CALL(shmctl(id, IPC_RMID, NULL));
	fill(start, PAGES, seed + 1, 0);
	CHECK_CALL(shmdt(start));
	CHECK(mmap(start, PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == start,
	      "mmap: %s", strerror(errno));
	fill(start, PAGES, seed + 2, 0);
	for (int round = 0; round < 4; round++) {
		press();
		verify(start, PAGES, seed + 2, 0, "in place of shared memory");
	}
}

static void expect_refused(int id, void *address)
{
	CHECK(shmat(id, address, SHM_REMAP) == (void *)-1 && errno == EINVAL, "shmat: %s",
	      strerror(errno));
}

/* A segment comes and goes in the middle of what is out; then there is memory again. */
static void replace_by_segment(char *start, char *middle, size_t pages, size_t before)
{
	int id = new_segment(pages);

	CHECK(shmat(id, middle + 5, SHM_REMAP | SHM_RND) == middle, "shmat: %s", strerror(errno));
	CHECK_CALL(shmctl(id, IPC_RMID, NULL));
	verify_zero(middle, pages, "new segment");
	CHECK_CALL(shmdt(middle));
	unmap_pages(start, before);
	CHECK(mmap(start, (before + pages) * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == start,
	      "mmap: %s", strerror(errno));
}

/*
 * Of what was out nothing is left for what comes next in its place, and what is out on both sides
 * is no reason to take what is between them for registered. Part of what was there goes by munmap(2),
 * which makes the new memory one that is not known.
 */
static void check_shm_remap_evicted(void)
{
	size_t third = PAGES / 3;
	size_t before = 16;

	for (int round = 0; round < 6; round++) {
		char *start = evicted_pages(PAGES, seed);
		char *middle = page_at(start, third);
		char *fresh = page_at(start, third - before);

		replace_by_segment(fresh, middle, third, before);
		fill(fresh, before, seed + 1, 0);
		evict(fresh, before);
		verify_zero(middle, third, "new memory in place of a segment");
		fill(middle, third, seed + 1, before);
		evict(middle, third);
		verify(fresh, before + third, seed + 1, 0, "new memory");
		verify(start, third - before, seed, 0, "before it");
		verify(page_at(start, 2 * third), third, seed, 2 * third, "behind it");
		unmap_pages(start, PAGES);
	}
}

/* What SHM_REMAP does besides: where nothing is mapped, read-only, and refused. */
static void check_shm_remap_other(void)
{
	size_t third = PAGES / 3;
	char *start = evicted_pages(PAGES, seed);
	char *middle = page_at(start, third);
	struct shmid_ds segment;
	int id = new_segment(third);

	expect_refused(id, NULL);
	expect_refused(id, middle + 1);
	verify(start, PAGES, seed, 0, "after what was refused");
	unmap_pages(middle, third);
	CHECK(shmat(id, middle, SHM_REMAP | SHM_RDONLY) == middle, "shmat: %s", strerror(errno));
	CHECK_CALL(shmctl(id, IPC_STAT, &segment));
	CHECK(segment.shm_nattch == 1, "attached %lu times", (unsigned long)segment.shm_nattch);
	verify_zero(middle, third, "read-only segment");
	catch_faults();
	CHECK(write_signal((uint64_t *)middle) == SIGSEGV, "a read-only segment can be written");
	CHECK(shmat(id, middle + PAGE_BYTES, SHM_REMAP) == middle + PAGE_BYTES, "shmat: %s",
	      strerror(errno));
	fill(middle + PAGE_BYTES, third, seed + 1, 0);
	CHECK(page_holds(middle, seed + 1, 0), "the two attachments differ");
	verify(start, third, seed, 0, "before the segment");
	verify(page_at(start, 2 * third + 1), third - 1, seed, 2 * third + 1, "behind it");
	CHECK_CALL(shmdt(middle + PAGE_BYTES));
	CHECK_CALL(shmctl(id, IPC_STAT, &segment));
	CHECK(segment.shm_nattch == 1, "attached %lu times", (unsigned long)segment.shm_nattch);
	CHECK_CALL(shmdt(middle));
	CHECK_CALL(shmctl(id, IPC_RMID, NULL));
	expect_refused(id, middle);
}

/* Whether the kernel takes a range for one mapping: then there only is no room for it to grow. */
static bool is_one_mapping(void *start, size_t pages)
{
	CHECK(mremap(start, pages * PAGE_BYTES, (pages + 1) * PAGE_BYTES, 0) == MAP_FAILED &&
		      (errno == ENOMEM || errno == EFAULT),
	      "mremap: %s", strerror(errno));
	return errno == ENOMEM;
}

static void map_fixed(void *start, size_t pages, int sharing)
{
	CHECK(mmap(start, pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
		   sharing | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == start,
	      "mmap: %s", strerror(errno));
}

/*
 * A mapping that goes over the border of what was seen to grow is one mapping still, which mremap(2)
 * moves. It may change between a look and a registration, but that is rare.
 */
static void check_mremap_while_growing(void)
{
	size_t pages = 128;
	int rounds = 100;
	int in_parts = 0;
	char *room = map_pages(4 * pages);
	char *start = page_at(room, pages);

	unmap_pages(room, 4 * pages);
	map_fixed(page_at(start, pages), 1, MAP_SHARED);
	for (int round = 0; round < rounds; round++) {
		void *grown = map_pages(pages);
		uint64_t end_ns;

		map_fixed(page_at(start, pages / 2), 1, MAP_SHARED); /* the border */
		fill(grown, pages, seed, 0);
		press();
		unmap_pages(page_at(start, pages / 2), 1);
		map_fixed(start, pages, MAP_PRIVATE);
		end_ns = now_ns() + 3000000;
		while (is_one_mapping(start, pages) && now_ns() < end_ns)
			;
		in_parts += now_ns() < end_ns;
		fill(start, pages, seed, 0);
		unmap_pages(start, pages);
		unmap_pages(grown, pages);
	}
	CHECK(in_parts <= rounds / 20, "%d of %d mappings were in parts", in_parts, rounds);
}

/* Machine code: executable memory is not evicted, and becoming executable must not lose it. */
static void check_executable(void)
{
#if defined(__x86_64__)
	static const unsigned char code[] = {0xb8, 0x2a, 0, 0, 0, 0xc3}; /* mov $42, %eax; ret */
#elif defined(__aarch64__)
	static const unsigned char code[] = {0x40, 0x05, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6};
#else
	static const unsigned char code[0];
	skip("no machine code for this processor");
#endif
	size_t pages = 512;
	char *start = map_pages(pages);

	for (size_t page = 0; page < pages; page++)
		memcpy(page_at(start, page), code, sizeof(code));
	evict(start, pages);
	CHECK_CALL(mprotect(start, pages * PAGE_BYTES, PROT_READ | PROT_EXEC));
	__builtin___clear_cache(start, start + pages * PAGE_BYTES);
	for (size_t page = 0; page < pages; page++) {
		int (*function)(void) = (int (*)(void))(uintptr_t)page_at(start, page);

		CHECK(function() == 42, "function in page %zu", page);
	}
	press();
	CHECK(((int (*)(void))(uintptr_t)start)() == 42, "function after pressure");
}

/* Neighbours that cannot be merged: more mappings than a careless pager can register. */
static void check_many_mappings(void)
{
	size_t count = 2000;
	char *start = map_pages(2 * count);

	for (size_t page = 0; page < 2 * count; page += 2)
		CHECK_CALL(mprotect(page_at(start, page), PAGE_BYTES, PROT_READ));
	for (size_t page = 1; page < 2 * count; page += 2)
		fill(page_at(start, page), 1, seed, page);
	press();
	press();
	for (size_t page = 0; page < 2 * count; page++) {
		if (page % 2)
			verify(page_at(start, page), 1, seed, page, "small mapping");
		else
			verify_zero(page_at(start, page), 1, "read-only neighbour");
	}
}

/* Holes read first give zeros, and a write afterwards stays. */
static void check_holes(void)
{
	char *start = evicted_pages(PAGES, seed);
	char *sparse = map_pages(4 * PAGES);

	for (size_t page = 0; page < 4 * PAGES; page += 4)
		fill(page_at(sparse, page), 1, seed, page);
	evict(sparse, 4 * PAGES);
	for (size_t page = 0; page < 4 * PAGES; page++) {
		if (page % 4 == 0)
			verify(page_at(sparse, page), 1, seed, page, "written page");
		else
			verify_zero(page_at(sparse, page), 1, "hole");
	}
	fill(sparse, 4 * PAGES, seed + 1, 0);
	verify(sparse, 4 * PAGES, seed + 1, 0, "filled holes");
	verify(start, PAGES, seed, 0, "neighbour");
}

/* ------------------------------------------------------------------ guards */

/* Make a page inaccessible, and throw away what it holds. */
static void install_guard(void *page)
{
	if (madvise(page, PAGE_BYTES, MADV_GUARD_INSTALL)) {
		CHECK(errno == EINVAL, "MADV_GUARD_INSTALL: %s", strerror(errno));
		skip("MADV_GUARD_INSTALL is not in this kernel (6.13)");
	}
}

/* Every sixteenth page. */
static void install_guards(char *start)
{
	for (size_t page = 8; page < PAGES; page += 16)
		install_guard(page_at(start, page));
}

/* Walk over the others, which brings pages in ahead of it. */
static void verify_between_guards(char *start, const char *what)
{
	verify(start, 8, seed, 0, what);
	for (size_t page = 9; page < PAGES; page += 16)
		verify(page_at(start, page), page + 15 < PAGES ? 15 : PAGES - page, seed, page,
		       what);
}

static void expect_guards(char *start, const char *what)
{
	for (size_t page = 8; page < PAGES; page += 16)
		CHECK(write_signal(page_at(start, page)) == SIGSEGV,
		      "%s: no guard at page %zu any more", what, page);
}

static void remove_guards(char *start, const char *what)
{
	for (size_t page = 8; page < PAGES; page += 16) {
		CHECK_CALL(madvise(page_at(start, page), PAGE_BYTES, MADV_GUARD_REMOVE));
		verify_zero(page_at(start, page), 1, what);
	}
}

/* Between pages that have left: the walk that brings those back must not take the guards away. */
static void check_guards(void)
{
	char *start = evicted_pages(PAGES, seed);

	catch_faults();
	install_guards(start);
	verify_between_guards(start, "beside guards");
	expect_guards(start, "after the walk");
	press();
	press();
	verify_between_guards(start, "beside guards, again");
	expect_guards(start, "after pressure");
	remove_guards(start, "where a guard was");
	verify_between_guards(start, "beside former guards");
}

/* In memory that fills up, where a run of holes is filled at once. */
static void check_guards_growing(void)
{
	char *start;

	catch_faults();
	press();
	press();
	start = map_pages(PAGES);
	install_guards(start);
	for (size_t page = 0; page < PAGES; page++)
		if (page % 16 != 8)
			fill(page_at(start, page), 1, seed, page);
	expect_guards(start, "after growing");
	evict(start, PAGES);
	verify_between_guards(start, "grown between guards");
	expect_guards(start, "after pressure");
	remove_guards(start, "never written");
}

/* What had left is void, though nobody touches what is beside it, and a child has it void as well. */
static void check_guards_removed(void)
{
	size_t half = PAGES / 2;
	char *start = evicted_pages(PAGES, seed);
	pid_t child;

	for (size_t page = 0; page < half; page++)
		install_guard(page_at(start, page));
	for (int round = 0; round < 4; round++)
		press();
	child = fork();
	CHECK_CALL(child);
	CHECK_CALL(madvise(start, half * PAGE_BYTES, MADV_GUARD_REMOVE));
	verify_zero(start, half, child ? "where guards were" : "where guards were, in a child");
	verify(page_at(start, half), PAGES - half, seed, half, "the other half");
	if (!child)
		_exit(0);
	expect_child_ok(child, "a child with the guards");
}

/*
 * Gone again before anybody may have seen them: what had left may be back, or zeros. Nothing else is,
 * and what is written then stays.
 */
static void check_guards_passing(void)
{
	char *start = evicted_pages(PAGES, seed);

	for (uint64_t round = 0; round < 4; round++) {
		for (size_t page = round % 2; page < PAGES; page += 2) {
			install_guard(page_at(start, page));
			CHECK_CALL(madvise(page_at(start, page), PAGE_BYTES, MADV_GUARD_REMOVE));
			CHECK(page_is_zero(page_at(start, page)) ||
				      page_holds(page_at(start, page), seed + round, page),
			      "page %zu behind a guard is neither old nor zero", page);
			fill(page_at(start, page), 1, seed + round + 1, page);
		}
		for (size_t page = !(round % 2); page < PAGES; page += 2) {
			verify(page_at(start, page), 1, seed + round, page, "beside a guard");
			fill(page_at(start, page), 1, seed + round + 1, page);
		}
		verify(start, PAGES, seed + round + 1, 0, "written after a guard");
		evict(start, PAGES);
	}
	verify(start, PAGES, seed + 4, 0, "written after a guard, and evicted");
}

static const struct check checks[] = {
	{"munmap", check_munmap},
	{"dontneed", check_dontneed},
	{"dontneed_present", check_dontneed_present},
	{"free", check_free},
	{"patchwork", check_patchwork},
	{"brk", check_brk},
	{"mremap_grow", check_mremap_grow},
	{"mremap_shrink", check_mremap_shrink},
	{"mremap_move", check_mremap_move},
	{"mremap_middle", check_mremap_middle},
	{"mremap_dontunmap", check_mremap_dontunmap},
	{"mremap_over", check_mremap_over},
	{"mremap_while_growing", check_mremap_while_growing},
	{"mprotect_readonly", check_mprotect_readonly},
	{"mprotect_none", check_mprotect_none},
	{"mlock", check_mlock},
	{"mremap_locked", check_mremap_locked},
	{"populate", check_populate},
	{"cold", check_cold},
	{"map_fixed", check_map_fixed},
	{"foreign_mappings", check_foreign_mappings},
	{"dev_zero", check_dev_zero},
	{"growsdown", check_growsdown},
	{"hugepage", check_hugepage},
	{"shm_remap", check_shm_remap},
	{"shm_remap_evicted", check_shm_remap_evicted},
	{"shm_remap_other", check_shm_remap_other},
	{"executable", check_executable},
	{"many_mappings", check_many_mappings},
	{"holes", check_holes},
	{"guards", check_guards},
	{"guards_growing", check_guards_growing},
	{"guards_removed", check_guards_removed},
	{"guards_passing", check_guards_passing},
};

int main(int argc, char **argv)
{
	return run_checks(checks, ARRAY_COUNT(checks), argc, argv);
}
