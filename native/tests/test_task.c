// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: a process has memory for as long as any of its threads has, and none when it has ended;
 * and a thread is found by the number that it has for itself.
 * Method: children that have ended and are not reaped, one whose first thread has, and one in a PID
 * namespace of its own.
 */

#include "check.h"
#include "task.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/** Wait until a child has ended, and leave it there. */
static void wait_for_end(pid_t child)
{
	siginfo_t info;

	CHECK_THAT(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), ==, 0);
}

static void end(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void *sleep_on(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void test_a_process_that_lives(void)
{
	char text[64] = "";
	int fd = usw_task_open(getpid(), "statm");

	CHECK_THAT(usw_task_has_memory(getpid()), ==, 1);
	CHECK_THAT(fd, >=, 0);
	CHECK_THAT(read(fd, text, sizeof(text) - 1), >, 0);
	CHECK_THAT(atoi(text), >, 0);
	close(fd);
	CHECK_THAT(usw_task_open(getpid(), "no such file"), ==, -ENOENT);
}

static void test_a_process_that_has_ended(void)
{
	pid_t child = fork();

	if (!child)
		_exit(0);
	wait_for_end(child);
	CHECK_THAT(usw_task_has_memory(child), ==, 0);
	CHECK_THAT(usw_task_open(child, "statm"), ==, -ESRCH);
	end(child);
	CHECK_THAT(usw_task_has_memory(child), ==, 0);
	CHECK_THAT(usw_task_open(child, "statm"), ==, -ESRCH);
}

static void test_a_process_without_its_first_thread(void)
{
	char text[64] = "";
	pid_t child = fork();

	if (!child) {
		pthread_t other;

		pthread_create(&other, NULL, sleep_on, NULL);
		pthread_exit(NULL);
	}
	for (int i = 0; i < 5000 && usw_task_has_memory(child); i++)
		usleep(1000);
	CHECK_THAT(usw_task_has_memory(child), ==, 0);

	int fd = usw_task_open(child, "statm");
	CHECK_THAT(fd, >=, 0);
	CHECK_THAT(read(fd, text, sizeof(text) - 1), >, 0);
	CHECK_THAT(atoi(text), >, 0);
	close(fd);
	end(child);
}

static void test_a_thread_in_a_call(void)
{
	pid_t child = fork();

	if (!child)
		sleep_on(NULL);
	for (int i = 0; i < 5000 && !usw_task_is_in(child, (uint32_t)child, SYS_pause); i++)
		usleep(1000);
	CHECK_THAT(usw_task_is_in(child, (uint32_t)child, SYS_pause), ==, 1);
	CHECK_THAT(usw_task_is_in(child, (uint32_t)child, SYS_mremap), ==, 0);
	CHECK_THAT(usw_task_faults_in(child, (uint32_t)child, SYS_pause), ==, 0);
	end(child);
	CHECK_THAT(usw_task_is_in(child, (uint32_t)child, SYS_pause), ==, 0);
	CHECK_THAT(usw_task_is_in(getpid(), (uint32_t)getpid(), SYS_pause), ==, 0);
}

static void *fault(void *memory)
{
	read(open("/dev/zero", O_RDONLY), memory, 1);
	return NULL;
}

static void test_a_thread_that_faults_in_a_call(void)
{
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_THREAD_ID};

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) < 0) {
		printf("no userfaultfd: faults in a call not tested\n");
		return;
	}
	void *memory = mmap(NULL, USW_PAGE_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register registration = {.range = {(uintptr_t)memory, USW_PAGE_BYTES},
					       .mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_zeropage zeros = {.range = registration.range};
	struct uffd_msg message;
	pthread_t thread;

	CHECK_THAT(ioctl(uffd, UFFDIO_REGISTER, &registration), ==, 0);
	CHECK_THAT(pthread_create(&thread, NULL, fault, memory), ==, 0);
	CHECK_THAT(read(uffd, &message, sizeof(message)), ==, sizeof(message));
	uint32_t id = message.arg.pagefault.feat.ptid;
	CHECK_THAT(usw_task_faults_in(getpid(), id, SYS_read), ==, 1);
	CHECK_THAT(usw_task_faults_in(getpid(), id, SYS_mremap), ==, 0);
	CHECK_THAT(ioctl(uffd, UFFDIO_ZEROPAGE, &zeros), ==, 0);
	pthread_join(thread, NULL);
	close(uffd);
}

static void *tell_and_sleep(void *writer)
{
	uint32_t own_id = (uint32_t)syscall(SYS_gettid);

	if (write(*(int *)writer, &own_id, sizeof(own_id)) != sizeof(own_id))
		_exit(1);
	return sleep_on(NULL);
}

/** A child of ours with two threads, in a PID namespace below ours. -1: that is not allowed. */
static pid_t start_below(uint32_t *ret_other_id)
{
	int ends[2];

	CHECK_THAT(pipe(ends), ==, 0);
	pid_t child = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
	if (!child) {
		pthread_t other;

		pthread_create(&other, NULL, tell_and_sleep, &ends[1]);
		sleep_on(NULL);
	}
	if (child > 0)
		CHECK_THAT(read(ends[0], ret_other_id, sizeof(*ret_other_id)), ==,
			   sizeof(*ret_other_id));
	close(ends[0]);
	close(ends[1]);
	return child;
}

static void test_a_thread_in_a_namespace_below(void)
{
	uint32_t other_id = 0;
	pid_t child = start_below(&other_id);

	CHECK_THAT(usw_task_is_below(getpid()), ==, 0);
	if (child < 0)
		return;
	CHECK_THAT(usw_task_is_below(child), ==, 1);
	CHECK_THAT(usw_task_number(child, 1), ==, (uint32_t)child);
	uint32_t number = usw_task_number(child, other_id);
	CHECK_THAT(number, >, (uint32_t)child);
	CHECK_THAT(number, !=, other_id);
	for (int i = 0; i < 5000 && !usw_task_is_in(child, number, SYS_pause); i++)
		usleep(1000);
	CHECK_THAT(usw_task_is_in(child, number, SYS_pause), ==, 1);
	CHECK_THAT(usw_task_number(child, other_id + 1), ==, 0);
	end(child);
	CHECK_THAT(usw_task_is_below(child), ==, 0);
	CHECK_THAT(usw_task_number(child, other_id), ==, 0);
}

int main(void)
{
	test_a_process_that_lives();
	test_a_process_that_has_ended();
	test_a_process_without_its_first_thread();
	test_a_thread_in_a_call();
	test_a_thread_that_faults_in_a_call();
	test_a_thread_in_a_namespace_below();
	return 0;
}
