// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: what the reclaim thread asks hands for can be done, and it goes on where nothing can: a run
 * is never of two mappings, not even of pages that are asked for again; a look that fails ends, and
 * what is not of /proc is not taken to look at. A handshake may read the mappings at any time.
 * Method: a child with three mappings side by side and a real userfaultfd; a thread that answers in
 * the place of hands, and writes down what it was asked for.
 */

#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "check.h"
#include "eligible.h"
#include "evict.h"
#include "ring.h"
#include "session.h"
#include "uffd.h"

#define PART_PAGES 4u
#define PARTS 3u
#define PAGES (PARTS * PART_PAGES)
#define LOOKS 300
#define BYTES(pages) ((uint64_t)(pages) * USW_PAGE_BYTES)

static struct usw_session session;
static uint64_t memory; /* the mappings, in the child */
static _Atomic bool stopping;
static enum usw_command_op last_op;
static struct usw_run last_runs[USW_BATCH_RUNS_MAX];
static uint32_t last_run_count;

/** Three mappings, between two that cannot be touched. The advice keeps the kernel from joining them. */
static void make_mappings(void)
{
	char *all = mmap(NULL, BYTES(PAGES + 2), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(all != MAP_FAILED);
	memory = (uintptr_t)all + BYTES(1);
	CHECK_EQ(mprotect(all + BYTES(1), BYTES(PAGES), PROT_READ | PROT_WRITE), 0);
	CHECK_EQ(madvise(all + BYTES(1 + PART_PAGES), BYTES(PART_PAGES), MADV_DONTDUMP), 0);
}

/** A child whose memory is there; says the number that its userfaultfd has there. */
static pid_t make_child(int *ret_uffd)
{
	int ends[2];

	CHECK_EQ(pipe(ends), 0);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		memset((void *)memory, 1, BYTES(PAGES));
		int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (write(ends[1], &uffd, sizeof(uffd)) != sizeof(uffd))
			_exit(1);
		for (;;)
			pause();
	}
	CHECK_EQ(read(ends[0], ret_uffd, sizeof(*ret_uffd)), sizeof(*ret_uffd));
	close(ends[0]);
	close(ends[1]);
	return child;
}

static int open_file(pid_t child, const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", child, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

static int make_area(void)
{
	int fd = memfd_create("area", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	CHECK(fd >= 0);
	CHECK_EQ(ftruncate(fd, USW_AREA_MEMFD_BYTES), 0);
	CHECK_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	return fd;
}

static struct usw_target *attach(pid_t child, int its_uffd)
{
	struct usw_hello hello = {.area_start = 1ull << 32, .token_page = 1ull << 33};
	struct usw_error error;
	int connection[2];
	int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	int uffd = (int)syscall(SYS_pidfd_getfd, pidfd, its_uffd, 0);

	if (uffd < 0 || usw_uffd_api(uffd, USW_UFFD_FEATURES)) {
		puts("no userfaultfd of another process here");
		kill(child, SIGKILL);
		exit(77);
	}
	int fds[] = {open_file(child, "maps"), open_file(child, "pagemap"),
		     open_file(child, "smaps"), make_area()};
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, connection), 0);
	struct usw_target *target = usw_target_create(&session);
	CHECK(target);
	for (int i = USW_FD_MAPS; i <= USW_FD_SMAPS; i++) {
		int others[] = {fds[0], fds[1], fds[2], fds[USW_FD_AREA]};

		others[i] = pidfd;
		CHECK_EQ(usw_target_attach(target, &hello, others, pidfd, child, connection[0],
					   &error),
			 -EPROTO);
	}
	CHECK_EQ(usw_target_attach(target, &hello, fds, pidfd, child, connection[0], &error), 0);
	target->uffd = uffd;
	target->armed = true;
	target->state = USW_TARGET_LIVE;
	target->ring->hands_pid = 1;
	return target;
}

/** In the place of hands: all pages are shared, and taken over, and then pinned. */
static void *answer(void *argument)
{
	struct usw_target *target = argument;
	struct usw_ring *ring = target->ring;
	uint32_t handled = 0;

	while (!atomic_load(&stopping)) {
		uint32_t posted = __atomic_load_n(&ring->posted_seq, __ATOMIC_ACQUIRE);

		if (posted == handled) {
			usleep(100);
			continue;
		}
		last_op = ring->op;
		last_run_count = ring->run_count;
		memcpy(last_runs, ring->runs, sizeof(last_runs));
		memset(ring->moved, ring->op == USW_OP_UNSHARE ? 0xff : 0, sizeof(ring->moved));
		ring->error = ring->op == USW_OP_UNSHARE ? 0 : EBUSY;
		handled = posted;
		__atomic_store_n(&ring->done_seq, posted, __ATOMIC_RELEASE);
	}
	return NULL;
}

static void test_runs_end_with_their_mapping(struct usw_target *target)
{
	pthread_t hands;
	uint32_t evicted = 0;

	target->cursor = memory;
	CHECK_EQ(pthread_create(&hands, NULL, answer, target), 0);
	CHECK_EQ(usw_evict_some(target, PAGES, true, &evicted), USW_EVICT_DONE);
	atomic_store(&stopping, true);
	pthread_join(hands, NULL);
	CHECK_EQ(evicted, 0);
	CHECK_EQ(target->posted_seq, 3); // evict, take over, evict
	CHECK_EQ(last_op, USW_OP_EVICT);
	CHECK_EQ(last_run_count, PARTS);
	for (uint32_t i = 0; i < PARTS; i++) {
		CHECK_EQ(last_runs[i].address, memory + i * BYTES(PART_PAGES));
		CHECK_EQ(last_runs[i].page_count, PART_PAGES);
	}
}

/** Whoever hands in something else for its pagemap has nothing evicted, and harms nobody else. */
static void test_a_look_that_fails_ends(struct usw_target *target)
{
	int pagemap_fd = target->pagemap_fd;
	uint32_t evicted = 0;

	target->pagemap_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	target->cursor = memory;
	CHECK_EQ(usw_evict_some(target, PAGES, true, &evicted), USW_EVICT_NOTHING);
	CHECK_EQ(evicted, 0);
	close(target->pagemap_fd);
	target->pagemap_fd = pagemap_fd;
}

static void *look(void *argument)
{
	struct usw_target *target = argument;

	for (int i = 0; i < LOOKS; i++) {
		pthread_mutex_lock(&target->map_lock);
		usw_ranges_free(&target->eligible.mappings); // so that they move each time
		usw_eligible_look(target);
		pthread_mutex_unlock(&target->map_lock);
	}
	return NULL;
}

/** A child's handshake reads its mappings while it is the child's turn. */
static void test_mappings_may_be_read_meanwhile(struct usw_target *target)
{
	pthread_t looker;
	uint32_t evicted = 0;

	atomic_store(&target->has_hands, false);
	CHECK_EQ(pthread_create(&looker, NULL, look, target), 0);
	for (uint64_t i = 0; i < LOOKS; i++)
		usw_evict_random(target, i << 20, 16, &evicted);
	pthread_join(looker, NULL);
	CHECK_EQ(evicted, 0);
}

int main(void)
{
	int uffd;

	check_start(60);
	make_mappings();
	pid_t child = make_child(&uffd);

	CHECK_EQ(usw_nodes_create(&session.nodes, 1024), 0);
	CHECK_EQ(usw_standby_space_create(&session.standbys), 0);
	session.limit_pages = 1024;
	struct usw_target *target = attach(child, uffd);
	test_runs_end_with_their_mapping(target);
	test_a_look_that_fails_ends(target);
	test_mappings_may_be_read_meanwhile(target);
	kill(child, SIGKILL);
	CHECK_EQ(waitpid(child, NULL, 0), child);
	usw_target_destroy(target);
	usw_standby_space_destroy(&session.standbys);
	usw_nodes_destroy(&session.nodes);
	return 0;
}
