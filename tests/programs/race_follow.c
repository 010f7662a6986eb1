// SPDX-License-Identifier: MIT

/**
 * @file
 * Race: somebody follows a move of memory before it has been told.
 *
 *     race_follow move|fork SECONDS [SEED]
 *
 * One thread moves an array over another. As soon as the place that it had is free a second thread
 * moves its own array there, or forks a child that looks for the first. The first thread may have
 * told nothing by then: it runs only when nobody else wants to, and two more threads want to.
 */

#include "program.h"

#include <pthread.h>
#include <sched.h>

#define PAGES 256ul
#define AROUND 16ul /* pages between the places: neighbours would become one mapping */
#define BUSY 2

static char *place[3];
static bool is_forking;
static uint64_t deadline_ns;
static uint64_t round_seed;
static atomic_bool is_moving; /* one array is on its way, the other thread is to follow */
static atomic_bool is_over;

static bool is_free(const char *start)
{
	unsigned char resident[PAGES];

	return mincore((void *)start, PAGES * PAGE_BYTES, resident) < 0;
}

static void put(char *start, uint64_t array_seed)
{
	map_pages_over(start, PAGES);
	fill(start, PAGES, array_seed, 0);
}

static void fork_and_look(void)
{
	int status;
	pid_t child = fork();

	CHECK_CALL(child);
	if (!child) {
		verify(place[2], PAGES, round_seed, 0, "the child's array");
		_exit(0);
	}
	CHECK_CALL(waitpid(child, &status, 0));
	CHECK(!status, "the child has ended with status %#x", status);
}

static void *follower(void *argument)
{
	while (!atomic_load(&is_over)) {
		if (!atomic_load(&is_moving))
			continue;
		while (!is_free(place[0]))
			;
		if (is_forking)
			fork_and_look();
		else
			move_pages_over(place[1], place[0], PAGES, 0);
		atomic_store(&is_moving, false);
	}
	return argument;
}

static void *busy(void *argument)
{
	while (!atomic_load(&is_over))
		if (!atomic_load(&is_moving))
			usleep(50);
	return argument;
}

static void move_and_check(void)
{
	struct sched_param none = {0};

	put(place[0], round_seed);
	put(place[1], round_seed + 1);
	put(place[2], round_seed + 2);
	usleep(2000); // for the stress to take some of it out
	CHECK_THREAD(pthread_setschedparam(pthread_self(), SCHED_IDLE, &none));
	atomic_store(&is_moving, true);
	move_pages_over(place[0], place[2], PAGES, 0);
	CHECK_THREAD(pthread_setschedparam(pthread_self(), SCHED_OTHER, &none));
	while (atomic_load(&is_moving))
		sched_yield();
	verify(place[2], PAGES, round_seed, 0, "the array that has moved");
	verify(place[is_forking], PAGES, round_seed + 1, 0, "the array that has followed");
}

int main(int argc, char **argv)
{
	pthread_t threads[1 + BUSY];
	uint64_t rounds = 0;

	CHECK(argc >= 3, "usage: %s move|fork SECONDS [SEED]", argv[0]);
	is_forking = strcmp(argv[1], "fork") == 0;
	deadline_ns = now_ns() + strtoull(argv[2], NULL, 0) * 1000000000u;
	seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
	for (size_t i = 0; i < ARRAY_COUNT(place); i++) {
		place[i] = reserve_pages(PAGES + 2 * AROUND);
		place[i] += AROUND * PAGE_BYTES;
	}
	for (size_t i = 0; i < ARRAY_COUNT(threads); i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, i ? busy : follower, NULL));
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
