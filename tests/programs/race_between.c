// SPDX-License-Identifier: MIT

/**
 * @file
 * Race: a fork between two moves of memory of which the first is told after it.
 *
 *     race_between back|on|keep SECONDS [SEED]
 *
 * One thread moves an array over another, and at once back again, or on to a third place, or lets the
 * old place stay. The kernel tells of the array that had to go first, then of the move: the thread
 * has the processor for the second only when another one, which wants it as well, lets go of it. That
 * is when the child is there. It finds the array where it was when the child was made.
 */

#include "program.h"

#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#define PAGES 256ul
#define AROUND 16ul /* pages between the places: neighbours would become one mapping */

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

static char *place[3];
static char *other; /* memory that a child gives back at once, which it has to tell */
static char mode;
static uint64_t deadline_ns;
static uint64_t round_seed;
static int wake_fd;
static atomic_bool is_moving; /* the array is on its way, the other thread is to fork */
static atomic_bool has_moved;
static atomic_bool is_over;
static atomic_ulong forks;

static bool is_free(const char *start)
{
	unsigned char resident[PAGES];

	return mincore((void *)start, PAGES * PAGE_BYTES, resident) < 0;
}

/* Whether nothing is in memory of a place: what is out comes in only when it is touched. */
static bool is_empty(const char *start)
{
	unsigned char resident[PAGES];

	return mincore((void *)start, PAGES * PAGE_BYTES, resident) < 0 ||
	       !memchr(resident, 1, PAGES);
}

static void put(char *start, uint64_t array_seed)
{
	map_pages_over(start, PAGES);
	fill(start, PAGES, array_seed, 0);
}

static void pin(int processor)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(processor, &set);
	sched_setaffinity(0, sizeof(set), &set); /* no such processor: then they share another */
}

/* Where a child has the array: the old place is free then, or was left and is still there. */
static char *find_array(void)
{
	if (mode == 'k')
		return page_holds(place[2], round_seed, 0) ? place[2] : place[0];
	if (mode == 'o' && !is_free(place[1]))
		return place[1];
	return is_free(place[0]) ? place[2] : place[0];
}

static void look(void)
{
	char *array = find_array();

	verify(array, PAGES, round_seed, 0, "the child's array");
	if (mode == 'k' && array == place[2])
		verify_zero(place[0], PAGES, "the old place in the child");
	if (mode == 'k' && array == place[0])
		verify(place[2], PAGES, round_seed + 1, 0, "the new place in the child");
}

/* By a bare clone(2), which is not served before the child is known, every other time. */
static void fork_and_look(void)
{
	bool is_bare = round_seed % 2;
	pid_t child = is_bare ? (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();

	CHECK_CALL(child);
	if (!child) {
		if (is_bare && round_seed & 2)
			CHECK_CALL(madvise(other, PAGE_BYTES, MADV_DONTNEED));
		else if (is_bare)
			usleep(1000);
		look();
		_exit(0);
	}
	atomic_store(&is_moving, false);
	expect_child_ok(child, "child");
	atomic_fetch_add(&forks, 1);
}

static void *follower(void *argument)
{
	uint64_t one = 1;

	pin(0);
	while (!atomic_load(&is_over)) {
		if (!atomic_load(&is_moving))
			continue;
		while (!(mode == 'k' ? is_empty(place[0]) : is_free(place[0])) &&
		       !atomic_load(&has_moved))
			;
		CHECK_CALL(write(wake_fd, &one, sizeof(one)));
		fork_and_look();
	}
	CHECK_CALL(write(wake_fd, &one, sizeof(one)));
	return argument;
}

static void *busy(void *argument)
{
	uint64_t count;

	pin(1);
	while (!atomic_load(&is_over)) {
		CHECK_CALL(read(wake_fd, &count, sizeof(count)));
		while (atomic_load(&is_moving))
			;
	}
	return argument;
}

static void move_and_check(void)
{
	struct sched_param none = {0};
	unsigned long before = atomic_load(&forks);
	char *array = mode == 'b' ? place[0] : mode == 'o' ? place[1] : place[2];

	if (mode == 'o')
		munmap(place[1], PAGES * PAGE_BYTES);
	put(place[0], round_seed);
	put(place[2], round_seed + 1);
	usleep(1000); // for the stress to take some of it out
	atomic_store(&has_moved, false);
	CHECK_THREAD(pthread_setschedparam(pthread_self(), SCHED_IDLE, &none));
	atomic_store(&is_moving, true);
	move_pages_over(place[0], place[2], PAGES, mode == 'k' ? MREMAP_DONTUNMAP : 0);
	if (array != place[2])
		move_pages_over(place[2], array, PAGES, 0);
	CHECK_THREAD(pthread_setschedparam(pthread_self(), SCHED_OTHER, &none));
	atomic_store(&has_moved, true);
	verify(array, PAGES, round_seed, 0, "the array that has moved");
	while (atomic_load(&forks) == before)
		sched_yield();
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	uint64_t rounds = 0;

	CHECK(argc >= 3 && strchr("bok", argv[1][0]), "usage: %s back|on|keep SECONDS [SEED]",
	      argv[0]);
	mode = argv[1][0];
	deadline_ns = now_ns() + strtoull(argv[2], NULL, 0) * 1000000000u;
	seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
	other = map_pages(AROUND);
	fill(other, AROUND, seed, 0);
	wake_fd = eventfd(0, EFD_CLOEXEC);
	CHECK_CALL(wake_fd);
	for (size_t i = 0; i < ARRAY_COUNT(place); i++) {
		place[i] = reserve_pages(PAGES + 2 * AROUND);
		place[i] += AROUND * PAGE_BYTES;
	}
	CHECK_THREAD(pthread_create(&threads[0], NULL, follower, NULL));
	CHECK_THREAD(pthread_create(&threads[1], NULL, busy, NULL));
	pin(1);
	for (; now_ns() < deadline_ns; rounds++) {
		round_seed = mix(seed + rounds);
		move_and_check();
	}
	atomic_store(&is_over, true);
	for (size_t i = 0; i < ARRAY_COUNT(threads); i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	printf("ok: %lu rounds\n", rounds);
	return 0;
}
