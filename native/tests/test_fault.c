// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a target that makes its userfaultfd block holds up nobody, also not by turns: its fault
 * thread reads what there is and goes on, and still hears of its faults.
 * Method: a real userfaultfd whose flags a thread changes without end, or that was opened so; a
 * fault thread that has to come back, and to answer.
 */

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "check.h"
#include "fault.h"
#include "session.h"
#include "uffd.h"

#define PUMPS 20000

static struct usw_session session;
static struct usw_fault_thread *const thread = &session.threads[0];
static _Atomic bool stopping;

static struct usw_target *start(void)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (uffd < 0 || usw_uffd_api(uffd, 0)) {
		puts("no full-mode userfaultfd here");
		exit(77);
	}
	CHECK_EQ(usw_nodes_create(&session.nodes, 1024), 0);
	session.limit_pages = 1024;
	session.thread_count = 1;
	CHECK_EQ(usw_fault_thread_init(thread, &session), 0);
	struct usw_target *target = usw_target_create(&session);
	CHECK(target);
	target->uffd = uffd;
	CHECK_EQ(usw_fault_serve(thread, target), 0);
	return target;
}

static void *change_flags(void *argument)
{
	int uffd = *(int *)argument;

	while (!atomic_load(&stopping)) {
		fcntl(uffd, F_SETFL, 0);
		fcntl(uffd, F_SETFL, O_NONBLOCK);
	}
	return NULL;
}

static void test_reading_comes_back(struct usw_target *target)
{
	pthread_t changer;

	usw_fault_pump(thread, target);
	CHECK_EQ(pthread_create(&changer, NULL, change_flags, &target->uffd), 0);
	for (int i = 0; i < PUMPS; i++)
		usw_fault_pump(thread, target);
	atomic_store(&stopping, true);
	pthread_join(changer, NULL);
}

static void *touch(void *page)
{
	return (void *)(uintptr_t)*(volatile char *)page;
}

/** The thread's loop: it hears of the fault, answers it, and then sleeps. */
static void test_faults_are_heard_of(struct usw_target *target)
{
	void *page = mmap(NULL, USW_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	struct epoll_event event;
	pthread_t toucher, server;

	CHECK(page != MAP_FAILED);
	CHECK_EQ(usw_uffd_register(target->uffd, (uintptr_t)page, USW_PAGE_BYTES), 0);
	CHECK_EQ(fcntl(target->uffd, F_SETFL, 0), 0);
	CHECK_EQ(pthread_create(&server, NULL, usw_fault_main, thread), 0);
	CHECK_EQ(pthread_create(&toucher, NULL, touch, page), 0);
	pthread_join(toucher, NULL);
	atomic_store(&session.stopping, true);
	usw_fault_kick_one(thread);
	pthread_join(server, NULL);
	CHECK(fcntl(target->uffd, F_GETFL) & O_NONBLOCK);
	CHECK(epoll_wait(thread->epoll_fd, &event, 1, 0) == 0 || event.data.u64 == 0); // the kick
	munmap(page, USW_PAGE_BYTES);
}

int main(void)
{
	check_start(60);
	struct usw_target *target = start();

	test_reading_comes_back(target);
	test_faults_are_heard_of(target);
	usw_target_destroy(target);
	usw_fault_thread_deinit(thread);
	usw_nodes_destroy(&session.nodes);
	return 0;
}
