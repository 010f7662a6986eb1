// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: what the kernel writes to when a thread ends stays as long as the thread lives.
 * Method: this process's own threads, which the C library has given lists of robust mutexes.
 */

#include <pthread.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "ending.h"

#define SECOND_NS 1000000000u
#define EACH 32u

static pthread_barrier_t barrier; /* all have begun */
static pthread_barrier_t release; /* and may end */
static pthread_barrier_t first;   /* some of them before the others */

/** Where this thread's list of robust mutexes is. */
static uintptr_t own_list(void)
{
	uintptr_t head;
	size_t bytes;

	CHECK_EQ(syscall(SYS_get_robust_list, 0, &head, &bytes), 0);
	return head;
}

/** Say that it is somewhere else. */
static void move_list(uintptr_t head)
{
	CHECK_EQ(syscall(SYS_set_robust_list, head, 3 * sizeof(void *)), 0);
}

static uint64_t own_page(void)
{
	return usw_page_floor(own_list());
}

static void *live(void *ret_page)
{
	*(uint64_t *)ret_page = own_page();
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&release);
	return NULL;
}

static bool has(const struct usw_ending *ending, uint64_t page)
{
	return usw_ending_has(ending, page, page + USW_PAGE_BYTES);
}

static void look_again(struct usw_ending *ending, int pid)
{
	ending->due_ns = 0;
	usw_ending_look(ending, pid);
}

static void test_as_long_as_it_lives(void)
{
	struct usw_ending ending = {0};
	pthread_t thread;
	uint64_t page;

	pthread_barrier_init(&barrier, NULL, 2);
	pthread_barrier_init(&release, NULL, 2);
	CHECK_EQ(pthread_create(&thread, NULL, live, &page), 0);
	pthread_barrier_wait(&barrier);
	CHECK(!has(&ending, page));
	usw_ending_look(&ending, getpid());
	CHECK(has(&ending, page) && has(&ending, own_page()));
	CHECK(!has(&ending, usw_page_floor((uintptr_t)&barrier)));
	CHECK(usw_ending_has(&ending, page - USW_HUGE_BYTES, page + USW_HUGE_BYTES));

	pthread_barrier_wait(&release);
	pthread_join(thread, NULL);
	look_again(&ending, getpid());
	CHECK(!has(&ending, page) && has(&ending, own_page()));
	pthread_barrier_destroy(&barrier);
	pthread_barrier_destroy(&release);
	usw_ending_deinit(&ending);
}

static void test_a_look_is_followed_by_a_pause(void)
{
	struct usw_ending ending = {0};

	usw_ending_look(&ending, getpid());
	uint64_t due_ns = ending.due_ns = usw_now_ns() + SECOND_NS;
	usw_ending_look(&ending, getpid());
	CHECK_EQ(ending.due_ns, due_ns);
	usw_ending_deinit(&ending);
}

static void test_what_is_unknown_stays_as_it_was(void)
{
	struct usw_ending ending = {0};

	usw_ending_look(&ending, getpid());
	look_again(&ending, 0x7fffffff); // no such process
	CHECK(has(&ending, own_page()));
	usw_ending_deinit(&ending);
}

/** The kernel forgets the list of a thread that ends before it clears the ID. */
static void test_a_list_that_is_gone_is_remembered(void)
{
	struct usw_ending ending = {0};

	usw_ending_look(&ending, getpid());
	uintptr_t before = own_list();
	move_list(0);
	look_again(&ending, getpid());
	move_list(before);
	CHECK(has(&ending, usw_page_floor(before)));
	usw_ending_deinit(&ending);
}

static void test_a_list_that_has_moved(void)
{
	struct usw_ending ending = {0};

	usw_ending_look(&ending, getpid());
	uintptr_t before = own_list();
	move_list((uintptr_t)&barrier);
	look_again(&ending, getpid());
	move_list(before);
	CHECK(has(&ending, usw_page_floor((uintptr_t)&barrier)));
	CHECK(!has(&ending, usw_page_floor(before)));
	usw_ending_deinit(&ending);
}

static void *end_soon(void *nothing)
{
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&first);
	return nothing;
}

/** Each second thread ends while the list is read, and the others stay. */
static void look_while_some_end(void)
{
	struct usw_ending ending = {0};
	pthread_t ends[EACH], stays[EACH];
	uint64_t page[EACH];

	pthread_barrier_init(&barrier, NULL, 2 * EACH + 1);
	pthread_barrier_init(&release, NULL, EACH + 1);
	pthread_barrier_init(&first, NULL, EACH + 1);
	for (uint32_t i = 0; i < EACH; i++) {
		CHECK_EQ(pthread_create(&ends[i], NULL, end_soon, NULL), 0);
		CHECK_EQ(pthread_create(&stays[i], NULL, live, &page[i]), 0);
	}
	pthread_barrier_wait(&barrier);
	look_again(&ending, getpid());
	pthread_barrier_wait(&first);
	for (uint32_t look = 0; look < 10; look++) {
		look_again(&ending, getpid());
		for (uint32_t i = 0; i < EACH; i++)
			CHECK(has(&ending, page[i]));
	}
	pthread_barrier_wait(&release);
	for (uint32_t i = 0; i < EACH; i++) {
		pthread_join(ends[i], NULL);
		pthread_join(stays[i], NULL);
	}
	pthread_barrier_destroy(&barrier);
	pthread_barrier_destroy(&release);
	pthread_barrier_destroy(&first);
	usw_ending_deinit(&ending);
}

/** While threads end, the list of /proc leaves others out. */
static void test_nobody_is_left_out(void)
{
	for (uint32_t round = 0; round < 50; round++)
		look_while_some_end();
}

/** The address is the program's to choose: none may stop the agent. */
static void test_an_address_that_cannot_be(void)
{
	struct usw_ending ending = {0};
	uintptr_t before = own_list();

	move_list(UINTPTR_MAX - 7);
	look_again(&ending, getpid());
	move_list(before);
	CHECK(!has(&ending, usw_page_floor(before)));
	usw_ending_deinit(&ending);
}

/** The mutexes that a thread holds must stay, and may go when it has given them back. */
static void test_what_is_held(void)
{
	struct usw_ending ending = {0};
	pthread_mutexattr_t robust;
	char *pages = mmap(NULL, 4 * USW_PAGE_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(pages != MAP_FAILED);
	CHECK_EQ(pthread_mutexattr_init(&robust), 0);
	CHECK_EQ(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST), 0);
	for (int i = 0; i < 2; i++) {
		pthread_mutex_t *lock = (void *)(pages + 2 * i * USW_PAGE_BYTES);

		CHECK_EQ(pthread_mutex_init(lock, &robust), 0);
		CHECK_EQ(pthread_mutex_lock(lock), 0);
	}
	look_again(&ending, getpid());
	CHECK(has(&ending, own_page()));
	CHECK(has(&ending, (uintptr_t)pages));
	CHECK(has(&ending, (uintptr_t)pages + 2 * USW_PAGE_BYTES));
	CHECK(!has(&ending, (uintptr_t)pages + USW_PAGE_BYTES));
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_mutex_unlock((void *)(pages + 2 * i * USW_PAGE_BYTES)), 0);
	look_again(&ending, getpid());
	CHECK(!has(&ending, (uintptr_t)pages));
	usw_ending_deinit(&ending);
	munmap(pages, 4 * USW_PAGE_BYTES);
}

int main(void)
{
	check_start(60);
	test_as_long_as_it_lives();
	test_a_look_is_followed_by_a_pause();
	test_what_is_unknown_stays_as_it_was();
	test_an_address_that_cannot_be();
	test_a_list_that_is_gone_is_remembered();
	test_a_list_that_has_moved();
	test_nobody_is_left_out();
	test_what_is_held();
	return 0;
}
