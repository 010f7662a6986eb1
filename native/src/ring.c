// SPDX-License-Identifier: MIT

/**
 * @file
 * Talking to hands. See ring.h.
 */

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "follow.h"
#include "ring.h"

/* How long to spin before sleeping: a batch of 64 pages takes hands about 40 us. */
#define USW_RING_SPIN_NS 50000u
#define USW_RING_SLEEP_NS 5000000u
/* Then hands is taken to be kept from running where it is. */
#define USW_RING_LET_GO_NS 50000000u
/* Then a command is withdrawn that hands has not taken. */
#define USW_RING_WITHDRAW_NS 500000000u
#define USW_RING_PATIENCE_NS 10000000000u
#define USW_RING_PATIENCE_SLEEPS (USW_RING_PATIENCE_NS / USW_RING_SLEEP_NS / 2)
/*
 * A move of one run takes a few microseconds. If it is not through by then, hands lost its
 * processor in the middle, most likely to us: it is the next to run there when we yield.
 */
#define USW_GATE_SPINS 100u
#define USW_GATE_YIELDS 200u

bool usw_gate_enter(struct usw_target *target)
{
	struct usw_ring *ring = target->ring;

	if (!ring)
		return true;
	__atomic_store_n(&ring->gate_agent, 1, __ATOMIC_SEQ_CST);
	for (uint32_t i = 0; __atomic_load_n(&ring->gate_hands, __ATOMIC_SEQ_CST); i++) {
		if (i == USW_GATE_SPINS + USW_GATE_YIELDS) {
			__atomic_store_n(&ring->gate_agent, 0, __ATOMIC_SEQ_CST);
			return false;
		}
		if (i < USW_GATE_SPINS)
			usw_cpu_relax();
		else
			sched_yield();
	}
	return true;
}

void usw_gate_leave(struct usw_target *target)
{
	if (target->ring)
		__atomic_store_n(&target->ring->gate_agent, 0, __ATOMIC_SEQ_CST);
}

static void ring_bell(struct usw_target *target, char what)
{
	// A full socket means that bells are waiting to be heard already.
	send(target->connection, &what, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

void usw_ring_post(struct usw_target *target, enum usw_command_op op, uint32_t epoch,
		   const struct usw_run *runs, uint32_t run_count, bool prepare)
{
	struct usw_ring *ring = target->ring;
	uint32_t page_count = 0;

	usw_assert(run_count > 0 && run_count <= USW_BATCH_RUNS_MAX);
	for (uint32_t i = 0; i < run_count; i++) {
		ring->runs[i] = runs[i];
		page_count += runs[i].page_count;
	}
	usw_assert(page_count <= USW_BATCH_PAGES_MAX);
	ring->op = op;
	ring->run_count = run_count;
	ring->page_count = page_count;
	ring->command_epoch = epoch;
	ring->prepare = prepare;
	ring->agent_waiting = 0;
	target->posted_seq++;
	__atomic_store_n(&ring->open_seq, target->posted_seq, __ATOMIC_RELAXED);
	__atomic_store_n(&ring->posted_seq, target->posted_seq, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&ring->hands_sleeping, __ATOMIC_SEQ_CST))
		ring_bell(target, USW_BELL_WORK);
}

static bool is_done(const struct usw_target *target)
{
	return __atomic_load_n(&target->ring->done_seq, __ATOMIC_ACQUIRE) == target->posted_seq;
}

/** Sleep until done_seq changes or a few milliseconds have passed. */
static void sleep_on_ring(struct usw_target *target)
{
	struct usw_ring *ring = target->ring;
	struct timespec patience = {.tv_nsec = USW_RING_SLEEP_NS};
	uint32_t seen = target->posted_seq - 1;

	__atomic_store_n(&ring->agent_waiting, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &ring->done_seq, FUTEX_WAIT, seen, &patience, NULL, 0);
}

bool usw_ring_is_cut(const struct usw_target *target)
{
	struct pollfd connection = {.fd = target->connection, .events = POLLRDHUP};

	return poll(&connection, 1, 0) == 1 &&
	       (connection.revents & (POLLHUP | POLLRDHUP | POLLERR));
}

int usw_ring_sender(const struct usw_target *target)
{
	char word;
	struct iovec data = {.iov_base = &word, .iov_len = sizeof(word)};
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(struct ucred))];
	} control = {0};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control.space,
		.msg_controllen = sizeof(control.space),
	};
	struct ucred sender;

	if (recvmsg(target->connection, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1 ||
	    word != USW_HANDS_HERE || message.msg_controllen < CMSG_LEN(sizeof(sender)) ||
	    control.header.cmsg_level != SOL_SOCKET || control.header.cmsg_type != SCM_CREDENTIALS)
		return 0;
	memcpy(&sender, CMSG_DATA(&control.header), sizeof(sender));
	return sender.pid;
}

static bool has_begun(const struct usw_target *target)
{
	return __atomic_load_n(&target->ring->hands_pid, __ATOMIC_ACQUIRE) != 0;
}

int usw_ring_look(const struct usw_target *target)
{
	if (has_begun(target) && is_done(target))
		return 0;
	if (!usw_ring_is_cut(target))
		return -EAGAIN;
	if (!has_begun(target))
		return -ECHILD;
	return is_done(target) ? 0 : -ESRCH; // it may have been quick
}

/** Take back what hands has not taken. False: it has, and must be waited for. */
static bool withdraw(struct usw_target *target)
{
	uint32_t open = target->posted_seq;

	return __atomic_compare_exchange_n(&target->ring->open_seq, &open, target->posted_seq - 1,
					   false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

int usw_ring_wait(struct usw_target *target, struct usw_answer *ret)
{
	uint64_t start_ns = usw_now_ns();
	uint32_t sleeps = 0;

	while (!is_done(target)) {
		uint64_t waited_ns = usw_now_ns() - start_ns;

		if (waited_ns < USW_RING_SPIN_NS) {
			for (uint32_t i = 0; i < 50 && !is_done(target); i++)
				usw_cpu_relax();
			continue;
		}
		sleep_on_ring(target);
		sleeps++;
		if (waited_ns > USW_RING_LET_GO_NS)
			usw_follow_let_go(target);
		if (is_done(target))
			break;
		bool is_gone = usw_ring_is_cut(target);
		if ((is_gone || waited_ns > USW_RING_WITHDRAW_NS) && withdraw(target))
			return -ECANCELED;
		if (is_gone && !is_done(target))
			return -ESRCH;
		// Time alone does not end it: we may have been stopped together with hands.
		if (waited_ns > USW_RING_PATIENCE_NS && sleeps > USW_RING_PATIENCE_SLEEPS)
			return -ETIMEDOUT;
	}
	for (uint32_t i = 0; i < USW_BATCH_PAGES_MAX / 64; i++)
		ret->moved[i] = __atomic_load_n(&target->ring->moved[i], __ATOMIC_RELAXED);
	int error = __atomic_load_n(&target->ring->error, __ATOMIC_RELAXED);
	ret->error = error > 0 && error < 4096 ? -error : 0;
	return 0;
}

void usw_ring_quit(struct usw_target *target)
{
	if (target->connection >= 0)
		ring_bell(target, USW_BELL_QUIT);
}
