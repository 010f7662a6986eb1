// SPDX-License-Identifier: MIT

/**
 * @file
 * Life of an address space: fork in its shapes, exec, vfork, and other processes looking in.
 *
 * A fork must copy no evicted page and yet give both sides memory of their own. Every child
 * checks its own view and exits 0; every parent checks that nothing of the child's came through.
 */

#include "program.h"

#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define PAGES 1024ul /* 4 MiB */

static char **arguments;

/* Run `view` in a forked child and wait for it. */
static void in_child(void (*view)(char *start), char *start, const char *what)
{
	pid_t child = fork();

	CHECK_CALL(child);
	if (!child) {
		view(start);
		_exit(0);
	}
	expect_child_ok(child, what);
}

/* ------------------------------------------------------------------ fork */

#define TREE_DEPTH 4
#define TREE_WIDTH 2
#define NODE_PAGES 128ul

/*
 * A node checks what all its ancestors wrote, overwrites one stretch, has children of its own,
 * and checks again: nothing the children wrote may be seen here.
 */
static void grow_tree(char *start, int depth, uint64_t path)
{
	pid_t children[TREE_WIDTH];

	for (int level = 0; level < depth; level++)
		verify(page_at(start, (size_t)level * NODE_PAGES), NODE_PAGES,
		       seed + (path >> (4 * (depth - 1 - level))), 0, "page of an ancestor");
	verify(page_at(start, TREE_DEPTH * NODE_PAGES), PAGES - TREE_DEPTH * NODE_PAGES, seed,
	       TREE_DEPTH * NODE_PAGES, "page of the root");
	if (depth == TREE_DEPTH)
		return;
	for (int i = 0; i < TREE_WIDTH; i++) {
		children[i] = fork();
		CHECK_CALL(children[i]);
		if (!children[i]) {
			path = path << 4 | (uint64_t)(i + 1);
			fill(page_at(start, (size_t)depth * NODE_PAGES), NODE_PAGES, seed + path,
			     0);
			grow_tree(start, depth + 1, path);
			_exit(0);
		}
	}
	for (int i = 0; i < TREE_WIDTH; i++)
		expect_child_ok(children[i], "node");
	verify(page_at(start, (size_t)depth * NODE_PAGES), NODE_PAGES, seed,
	       (uint64_t)depth * NODE_PAGES, "page that only the children wrote");
}

static void check_fork_tree(void)
{
	grow_tree(evicted_pages(PAGES, seed), 0, 0);
}

static void write_other_half(char *start)
{
	verify(start, PAGES, seed, 0, "child, as forked");
	for (size_t page = 1; page < PAGES; page += 2)
		fill(page_at(start, page), 1, seed + 2, page);
	evict(start, PAGES);
	for (size_t page = 0; page < PAGES; page++)
		verify(page_at(start, page), 1, seed + (page % 2 ? 2 : 0), page, "child");
}

/* Both sides write while both live, both are evicted, both are checked. */
static void check_fork_cow(void)
{
	char *start = evicted_pages(PAGES, seed);
	pid_t child = fork();

	CHECK_CALL(child);
	if (!child) {
		write_other_half(start);
		_exit(0);
	}
	for (size_t page = 0; page < PAGES; page += 2)
		fill(page_at(start, page), 1, seed + 1, page);
	evict(start, PAGES);
	expect_child_ok(child, "writing child");
	for (size_t page = 0; page < PAGES; page++)
		verify(page_at(start, page), 1, seed + (page % 2 ? 0 : 1), page, "parent");
}

/* A pager may leave shared pages for last, so the child presses and does not insist. */
static void write_under_pressure(char *start)
{
	for (size_t page = 1; page < PAGES; page += 2)
		fill(page_at(start, page), 1, seed + 2, page);
	for (int round = 0; round < 4; round++)
		press();
	for (size_t page = 0; page < PAGES; page++)
		verify(page_at(start, page), 1, seed + (page % 2 ? 2 : 0), page, "child");
}

/*
 * Pages present and shared at the fork: neither side may lose them when they are evicted. When the
 * children are gone the pages are the parent's alone, and as good to evict as any other.
 */
static void check_fork_present(void)
{
	char *start = map_pages(PAGES);

	fill(start, PAGES, seed, 0);
	for (int generation = 0; generation < 3; generation++) {
		in_child(write_under_pressure, start, "child of present pages");
		verify(start, PAGES, seed, 0, "parent of present pages");
	}
	evict(start, PAGES);
	verify(start, PAGES, seed, 0, "parent, evicted");
}

/* The middle generation is gone before the last one looks. */
static void check_fork_orphan(void)
{
	char *start = evicted_pages(PAGES, seed);
	char verdict = 0;
	int ends[2];
	pid_t child;

	CHECK_CALL(pipe(ends));
	child = fork();
	CHECK_CALL(child);
	if (!child) {
		pid_t middle = getpid();

		fill(start, PAGES / 2, seed + 1, 0);
		child = fork();
		CHECK_CALL(child);
		if (child)
			_exit(0);
		close(ends[0]);
		while (getppid() == middle)
			sched_yield();
		verify(start, PAGES / 2, seed + 1, 0, "orphan, its father's half");
		evict(start, PAGES);
		verify(page_at(start, PAGES / 2), PAGES / 2, seed, PAGES / 2, "orphan");
		CHECK_CALL(write(ends[1], "k", 1));
		_exit(0);
	}
	close(ends[1]);
	expect_child_ok(child, "middle");
	CHECK(read(ends[0], &verdict, 1) == 1 && verdict == 'k', "the orphan gave up");
	verify(start, PAGES, seed, 0, "grandparent");
}

/* The address is what the parent knows; the page beside it tells if the range came along. */
static void check_wipeonfork(void)
{
	char *start = map_pages(PAGES);
	pid_t child;

	if (madvise(page_at(start, 256), 256 * PAGE_BYTES, MADV_WIPEONFORK))
		skip("MADV_WIPEONFORK is not in this kernel (4.14)");
	fill(start, PAGES, seed, 0);
	evict(start, PAGES);
	child = fork();
	CHECK_CALL(child);
	if (!child) {
		verify_zero(page_at(start, 256), 256, "wiped, in the child");
		verify(start, 256, seed, 0, "below the wiped range");
		verify(page_at(start, 512), PAGES - 512, seed, 512, "above the wiped range");
		fill(page_at(start, 256), 256, seed + 1, 0);
		evict(start, PAGES);
		verify(page_at(start, 256), 256, seed + 1, 0, "rewritten, in the child");
		_exit(0);
	}
	expect_child_ok(child, "wiped child");
	verify(start, PAGES, seed, 0, "parent");
}

static void check_dontfork(void)
{
	char *start = map_pages(PAGES);
	unsigned char state;
	pid_t child;

	CHECK_CALL(madvise(page_at(start, 256), 256 * PAGE_BYTES, MADV_DONTFORK));
	fill(start, PAGES, seed, 0);
	evict(start, PAGES);
	child = fork();
	CHECK_CALL(child);
	if (!child) {
		CHECK(mincore(page_at(start, 256), PAGE_BYTES, &state) < 0 && errno == ENOMEM,
		      "the range is mapped in the child");
		CHECK(mmap(page_at(start, 256), 256 * PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED,
		      "mmap: %s", strerror(errno));
		verify_zero(page_at(start, 256), 256, "mapped anew in the child");
		verify(start, 256, seed, 0, "below the missing range");
		verify(page_at(start, 512), PAGES - 512, seed, 512, "above the missing range");
		fill(page_at(start, 256), 256, seed + 1, 0);
		evict(start, PAGES);
		verify(page_at(start, 256), 256, seed + 1, 0, "written and evicted in the child");
		_exit(0);
	}
	expect_child_ok(child, "child without the range");
	verify(start, PAGES, seed, 0, "parent");
}

/* What the parent does as soon as it runs on is nothing that the child inherits. */
static void fork_and_advise(int advice, int opposite)
{
	char *start = evicted_pages(PAGES, seed);

	for (int round = 0; round < 8; round++) {
		pid_t child = fork();

		CHECK_CALL(child);
		if (!child) {
			verify(start, PAGES, seed, 0, "child of before");
			_exit(0);
		}
		if (madvise(start, PAGES * PAGE_BYTES, advice))
			skip("MADV_WIPEONFORK is not in this kernel (4.14)");
		expect_child_ok(child, "child of before");
		CHECK_CALL(madvise(start, PAGES * PAGE_BYTES, opposite));
		evict(start, PAGES);
	}
	verify(start, PAGES, seed, 0, "parent");
}

static void check_dontfork_late(void)
{
	fork_and_advise(MADV_DONTFORK, MADV_DOFORK);
}

static void check_wipeonfork_late(void)
{
	fork_and_advise(MADV_WIPEONFORK, MADV_KEEPONFORK);
}

/* And what it takes back then is what the child has all the same. */
static void check_wipeonfork_undone(void)
{
	char *start = evicted_pages(PAGES, seed);

	for (int round = 0; round < 8; round++) {
		if (madvise(start, PAGES * PAGE_BYTES, MADV_WIPEONFORK))
			skip("MADV_WIPEONFORK is not in this kernel (4.14)");
		pid_t child = fork();

		CHECK_CALL(child);
		if (!child) {
			verify_zero(start, PAGES, "child of what was to be wiped");
			_exit(0);
		}
		CHECK_CALL(madvise(start, PAGES * PAGE_BYTES, MADV_KEEPONFORK));
		expect_child_ok(child, "child of what was to be wiped");
		evict(start, PAGES);
	}
	verify(start, PAGES, seed, 0, "parent");
}

/* ------------------------------------------------------------------ fork while others write */

static atomic_bool writers_stop;

/*
 * The first word of a page is raised before the second, by one thread. A snapshot may see the
 * first one ahead by one, nothing else.
 */
static void *count_in_pages(void *argument)
{
	volatile uint64_t *words = argument;

	for (uint64_t round = 1; !atomic_load(&writers_stop); round++)
		for (size_t page = 0; page < PAGES / 2; page++) {
			words[page * PAGE_WORDS] = round;
			atomic_signal_fence(memory_order_seq_cst);
			words[page * PAGE_WORDS + PAGE_WORDS - 1] = round;
		}
	return NULL;
}

static void verify_counts(char *start)
{
	volatile uint64_t *words = (uint64_t *)(void *)start;

	for (size_t page = 0; page < PAGES / 2; page++) {
		uint64_t first = words[page * PAGE_WORDS];
		uint64_t last = words[page * PAGE_WORDS + PAGE_WORDS - 1];

		CHECK(first == last || first == last + 1, "page %zu was torn by fork: %lu, %lu",
		      page, first, last);
	}
	verify(page_at(start, PAGES / 2), PAGES / 2, seed, PAGES / 2, "child of a busy parent");
}

static void check_fork_while_writing(void)
{
	char *start = evicted_pages(PAGES, seed);
	pthread_t writer;

	memset(start, 0, PAGES / 2 * PAGE_BYTES);
	CHECK_THREAD(pthread_create(&writer, NULL, count_in_pages, start));
	for (int i = 0; i < 12; i++)
		in_child(verify_counts, start, "snapshot");
	atomic_store(&writers_stop, true);
	CHECK_THREAD(pthread_join(writer, NULL));
	verify_counts(start);
}

/* No atfork handler runs, so the child has no hands of its own and must be served all the same. */
static pid_t clone_bare(void)
{
	pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

	CHECK_CALL(child);
	return child;
}

static void check_raw_clone(void)
{
	char *start = evicted_pages(PAGES, seed);
	pid_t child = clone_bare();

	if (!child) {
		verify(start, PAGES, seed, 0, "raw child");
		fill(start, PAGES, seed + 1, 0);
		press();
		verify(start, PAGES, seed + 1, 0, "raw child, rewritten");
		_exit(0);
	}
	expect_child_ok(child, "raw child");
	verify(start, PAGES, seed, 0, "parent of a raw child");
}

/* Memory becomes larger where it is, of which no event tells, maybe before the child is known. */
static void grow_in_place(char *start, char *heap)
{
	size_t half = PAGES / 2;

	CHECK(mremap(start, half * PAGE_BYTES, PAGES * PAGE_BYTES, 0) == start, "mremap: %s",
	      strerror(errno));
	CHECK_CALL(brk(heap + PAGES * PAGE_BYTES));
	verify_zero(page_at(start, half), half, "grown by mremap");
	verify_zero(page_at(heap, half), half, "grown by brk");
	fill(page_at(start, half), half, seed, half);
	fill(page_at(heap, half), half, seed + 1, half);
	press();
	verify(start, PAGES, seed, 0, "grown by mremap, and written");
	verify(heap, PAGES, seed + 1, 0, "grown by brk, and written");
}

/* What the parent had right behind that is gone, and so is what had left of it. */
static void check_raw_clone_grow(void)
{
	size_t half = PAGES / 2;
	char *bottom = sbrk(0);
	char *heap = (char *)(((uintptr_t)bottom + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1));
	char *start = map_pages(PAGES);

	for (int round = 0; round < 4; round++) {
		CHECK_CALL(brk(heap + PAGES * PAGE_BYTES));
		fill(start, PAGES, seed, 0);
		fill(heap, PAGES, seed + 1, 0);
		evict(start, PAGES);
		evict(heap, PAGES);
		unmap_pages(page_at(start, half), half);
		CHECK_CALL(brk(heap + half * PAGE_BYTES));
		pid_t child = clone_bare();
		if (!child) {
			grow_in_place(start, heap);
			_exit(0);
		}
		expect_child_ok(child, "child that grows");
		verify(start, half, seed, 0, "parent of a child that grows");
		verify(heap, half, seed + 1, 0, "its heap");
		CHECK(mremap(start, half * PAGE_BYTES, PAGES * PAGE_BYTES, 0) == start,
		      "mremap: %s", strerror(errno));
	}
	CHECK_CALL(brk(bottom));
}

/* ------------------------------------------------------------------ fork and moves */

/* The old place of a move stays, and is empty: in children of after it, and not in those of before. */
static void check_fork_dontunmap(void)
{
	char *start = map_pages(PAGES);
	char *moved = reserve_pages(PAGES);

	fill(start, PAGES, seed, 0);
	for (int round = 0; round < 6; round++) {
		evict(start, PAGES);
		pid_t before = round % 2 ? clone_bare() : fork();
		CHECK_CALL(before);
		if (!before) {
			verify(start, PAGES, seed, 0, "child of before the move");
			_exit(0);
		}
		move_pages_over(start, moved, PAGES, MREMAP_DONTUNMAP);
		pid_t after = round % 2 ? clone_bare() : fork();
		CHECK_CALL(after);
		if (!after) {
			verify_zero(start, PAGES, "old place in a child of after the move");
			verify(moved, PAGES, seed, 0, "child of after the move");
			_exit(0);
		}
		fill(start, PAGES, seed + 1, 0);
		verify(moved, PAGES, seed, 0, "moved");
		verify(start, PAGES, seed + 1, 0, "old place, written");
		expect_child_ok(before, "child of before the move");
		expect_child_ok(after, "child of after the move");
		move_pages_over(moved, start, PAGES, MREMAP_DONTUNMAP);
	}
}

#define SHARERS 6

/* Each of them has what is out at another place. */
static void move_and_look(char *start, size_t number)
{
	char *place = reserve_pages(PAGES);
	size_t quarter = PAGES / 4;

	for (size_t part = 0; part < 4;
	     part++) /* the last first, or the first: pages pass each other */
		move_pages_over(page_at(start, part * quarter),
				page_at(place, (number % 2 ? 3 - part : part) * quarter), quarter,
				0);
	for (size_t part = 0; part < 4; part++)
		verify(page_at(place, (number % 2 ? 3 - part : part) * quarter), quarter, seed,
		       part * quarter, "child that has moved what it shares");
	fill(place, quarter, seed + 2 + number, 0);
	press();
	verify(place, quarter, seed + 2 + number, 0, "child, written");
	verify(page_at(place, quarter), quarter, seed, (number % 2 ? 2 : 1) * quarter,
	       "child, under pressure");
}

/* What is out is read in by several at a time, each at a place of its own, while others move it. */
static void check_fork_moves(void)
{
	char *start = evicted_pages(PAGES, seed);
	pid_t children[SHARERS];

	for (size_t i = 0; i < SHARERS; i++) {
		children[i] = i % 2 ? clone_bare() : fork();
		CHECK_CALL(children[i]);
		if (!children[i]) {
			move_and_look(start, i);
			_exit(0);
		}
		char *place = reserve_pages(PAGES);
		move_pages_over(start, place, PAGES, 0);
		start = place;
		for (size_t page = i; page < PAGES; page += SHARERS)
			verify(page_at(start, page), 1, seed, page, "parent that moves");
	}
	for (size_t i = 0; i < SHARERS; i++)
		expect_child_ok(children[i], "child that moves");
	verify(start, PAGES, seed, 0, "parent of children that move");
}

/* ------------------------------------------------------------------ exec */

/* The child borrows the address space: what it writes to evicted memory is the parent's. */
static void check_vfork(void)
{
	char *start = evicted_pages(PAGES, seed);
	volatile uint64_t *mark = (uint64_t *)page_at(start, 3);

	for (uint64_t i = 0; i < 20; i++) {
		pid_t child;

		evict(start, PAGES);
		child = vfork();
		if (!child) {
			*mark = i;
			execl("/bin/true", "true", (char *)NULL);
			_exit(127);
		}
		CHECK_CALL(child);
		expect_child_ok(child, "vfork and exec");
		CHECK(*mark == i, "the child's write is missing: %lu, expected %lu", *mark, i);
	}
	fill(page_at(start, 3), 1, seed, 3);
	verify(start, PAGES, seed, 0, "parent after vfork");
}

static void check_posix_spawn(void)
{
	char *start = evicted_pages(PAGES, seed);
	char *const argv[] = {(char *)"true", NULL};

	for (int i = 0; i < 20; i++) {
		pid_t child;

		CHECK_THREAD(posix_spawn(&child, "/bin/true", NULL, NULL, argv, environ));
		expect_child_ok(child, "spawned");
	}
	verify(start, PAGES, seed, 0, "parent after posix_spawn");
}

/* The path, the vector and the strings of an exec are all out when the kernel reads them. */
static void check_exec_arguments(void)
{
	char *start = map_pages(PAGES);
	char **argv = (char **)page_at(start, 100);
	pid_t child;

	fill(start, PAGES, seed, 0);
	strcpy(page_at(start, 200), "/bin/sh");
	strcpy(page_at(start, 300), "-c");
	strcpy(page_at(start, 400), "test \"$0\" = evicted");
	strcpy(page_at(start, 500), "evicted");
	for (size_t i = 0; i < 4; i++)
		argv[i] = page_at(start, 200 + 100 * i);
	argv[4] = NULL;
	evict(start, PAGES);
	child = fork();
	CHECK_CALL(child);
	if (!child) {
		execv(page_at(start, 200), argv);
		fail("execv: %s", strerror(errno));
	}
	expect_child_ok(child, "exec from evicted memory");
}

/* One process, many images: each must begin empty and be managed again. */
static void check_exec_self(void)
{
	const char *left = getenv("EXECS_LEFT");
	int count = left ? atoi(left) : 5;
	char text[16];
	char *start = evicted_pages(PAGES, seed + (uint64_t)count);

	verify(start, PAGES / 2, seed + (uint64_t)count, 0, "this image's memory");
	if (!count)
		return;
	snprintf(text, sizeof(text), "%d", count - 1);
	setenv("EXECS_LEFT", text, 1);
	execv("/proc/self/exe", arguments);
	fail("execv: %s", strerror(errno));
}

/* ------------------------------------------------------------------ other processes looking in */

/* A child with evicted memory of its own that waits to be killed. */
static pid_t start_sleeper(char *start)
{
	char ready;
	int ends[2];
	pid_t child;

	CHECK_CALL(pipe(ends));
	child = fork();
	CHECK_CALL(child);
	if (!child) {
		fill(start, PAGES, seed, 0);
		evict(start, PAGES);
		CHECK_CALL(write(ends[1], "r", 1));
		for (;;)
			pause();
	}
	close(ends[1]);
	CHECK(read(ends[0], &ready, 1) == 1, "the sleeper did not come up");
	close(ends[0]);
	return child;
}

static void end_sleeper(pid_t child)
{
	CHECK_CALL(kill(child, SIGKILL));
	CHECK_CALL(waitpid(child, NULL, 0));
}

static void check_process_vm_readv(void)
{
	char *start = map_pages(PAGES);
	char *copy = map_pages(PAGES);
	pid_t child = start_sleeper(start);

	for (size_t page = 0; page < PAGES; page += 64) {
		struct iovec local = {page_at(copy, page), 64 * PAGE_BYTES};
		struct iovec remote = {page_at(start, page), 64 * PAGE_BYTES};
		ssize_t got = process_vm_readv(child, &local, 1, &remote, 1, 0);

		if (got < 0 && (errno == ENOSYS || errno == EPERM)) {
			end_sleeper(child);
			skip("process_vm_readv is not allowed here");
		}
		CHECK(got == (ssize_t)(64 * PAGE_BYTES), "process_vm_readv of page %zu: %zd (%s)",
		      page, got, strerror(errno));
	}
	verify(copy, PAGES, seed, 0, "read from the child");
	end_sleeper(child);
}

/*
 * The kernel does not wait for a pager here: PTRACE_PEEKDATA and /proc/PID/mem of an evicted page
 * end in EIO. That is documented; a wrong word would not be.
 */
static void check_ptrace_peek(void)
{
	char *start = map_pages(PAGES);
	pid_t child = start_sleeper(start);
	size_t right = 0;

	if (ptrace(PTRACE_ATTACH, child, 0, 0)) {
		end_sleeper(child);
		skip("ptrace is not allowed here");
	}
	CHECK_CALL(waitpid(child, NULL, __WALL));
	for (size_t page = 0; page < PAGES; page++) {
		uint64_t *address = page_at(start, page);
		uint64_t word;

		errno = 0;
		word = (uint64_t)ptrace(PTRACE_PEEKDATA, child, address + 9, 0);
		if (errno) {
			CHECK(errno == EIO, "PTRACE_PEEKDATA: %s", strerror(errno));
			CHECK(limit_bytes, "PTRACE_PEEKDATA fails on memory that is present");
			continue;
		}
		CHECK(word == page_word(seed, page, 9), "PTRACE_PEEKDATA of page %zu: %#lx", page,
		      word);
		right++;
	}
	CHECK(right || limit_bytes, "PTRACE_PEEKDATA saw nothing");
	end_sleeper(child);
}

/* ------------------------------------------------------------------ followed by a tracer */

/* What runs under the tracer, an image of its own with a child of its own. */
static void be_followed(void)
{
	char *start = evicted_pages(PAGES, seed);
	pid_t child = fork();

	CHECK_CALL(child);
	if (!child) {
		verify(start, PAGES, seed, 0, "followed child");
		_exit(0);
	}
	expect_child_ok(child, "followed child");
	verify(start, PAGES, seed, 0, "followed parent");
}

static _Noreturn void start_followed(void)
{
	if (ptrace(PTRACE_TRACEME, 0, 0, 0))
		_exit(EXIT_SKIPPED);
	raise(SIGSTOP);
	setenv("FOLLOWED", "1", 1);
	execv("/proc/self/exe", arguments);
	fail("execv: %s", strerror(errno));
}

/* Let a tracee run on. Returns 1 if it stopped because it has made another task. */
static int let_run(pid_t tracee, int status)
{
	int signal = WSTOPSIG(status);
	int event = status >> 16;

	if (signal == SIGSTOP || signal == SIGTRAP)
		signal = 0;
	ptrace(PTRACE_CONT, tracee, 0, signal); /* fails if it was killed meanwhile */
	return event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK ||
	       event == PTRACE_EVENT_CLONE;
}

/* As strace -f and debuggers do: all that a program makes is traced, and nothing else is. */
static void check_followed(void)
{
	const int options = PTRACE_O_EXITKILL | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
			    PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC;
	int made = 0;
	int ended = 0;
	int status;
	pid_t tracee;
	pid_t first;

	if (getenv("FOLLOWED")) {
		be_followed();
		return;
	}
	first = fork();
	CHECK_CALL(first);
	if (!first)
		start_followed();
	CHECK(waitpid(first, &status, 0) == first, "waitpid: %s", strerror(errno));
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED)
		skip("ptrace is not allowed here");
	CHECK_CALL(ptrace(PTRACE_SETOPTIONS, first, 0, options));
	ptrace(PTRACE_CONT, first, 0, 0);
	while ((tracee = waitpid(-1, &status, __WALL)) > 0) {
		if (WIFSTOPPED(status)) {
			made += let_run(tracee, status);
			continue;
		}
		CHECK(status == 0, "tracee %d ended with status %#x", tracee, (unsigned int)status);
		ended++;
	}
	CHECK(made == 1 && ended == 2, "%d tasks were made and %d ended, not 1 and 2", made, ended);
}

/* ------------------------------------------------------------------ leaks */

#define WARM_UP 20
#define CHILDREN 1000

static void fork_and_exec(int count)
{
	for (int i = 0; i < count; i++) {
		pid_t child = fork();

		CHECK_CALL(child);
		if (!child) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(127);
		}
		expect_child_ok(child, "fork and exec");
	}
}

static void wait_for_line(void)
{
	char character;

	do
		CHECK(read(STDIN_FILENO, &character, 1) == 1, "nobody said to go on");
	while (character != '\n');
}

/*
 * Says "ready" when warm and "done" after the children, and waits for a line each time: whoever
 * runs this looks at the agent in between.
 */
static void check_fork_exec_many(void)
{
	char *start = evicted_pages(PAGES, seed);

	fork_and_exec(WARM_UP);
	evict(start, PAGES);
	dprintf(STDOUT_FILENO, "ready\n");
	wait_for_line();
	fork_and_exec(CHILDREN);
	evict(start, PAGES);
	dprintf(STDOUT_FILENO, "done\n");
	wait_for_line();
	verify(start, PAGES, seed, 0, "parent of many");
}

static const struct check checks[] = {
	{"fork_tree", check_fork_tree},
	{"fork_cow", check_fork_cow},
	{"fork_present", check_fork_present},
	{"fork_orphan", check_fork_orphan},
	{"fork_while_writing", check_fork_while_writing},
	{"wipeonfork", check_wipeonfork},
	{"dontfork", check_dontfork},
	{"dontfork_late", check_dontfork_late},
	{"wipeonfork_late", check_wipeonfork_late},
	{"wipeonfork_undone", check_wipeonfork_undone},
	{"raw_clone", check_raw_clone},
	{"raw_clone_grow", check_raw_clone_grow},
	{"fork_dontunmap", check_fork_dontunmap},
	{"fork_moves", check_fork_moves},
	{"vfork", check_vfork},
	{"posix_spawn", check_posix_spawn},
	{"exec_arguments", check_exec_arguments},
	{"exec_self", check_exec_self},
	{"process_vm_readv", check_process_vm_readv},
	{"ptrace_peek", check_ptrace_peek},
	{"followed", check_followed},
	{"fork_exec_many", check_fork_exec_many},
};

int main(int argc, char **argv)
{
	arguments = argv;
	return run_checks(checks, ARRAY_COUNT(checks), argc, argv);
}
