// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: shim and hands keep every promise of wire.h, and a program cannot tell that they are there.
 * Method: a fake agent (shim_rig.h) drives the real library in real processes (shim_puppet.h);
 * failures of the kernel that cannot be had by asking are injected by a seccomp supervisor.
 */

#include <dirent.h>

#include "shim_inject.h"
#include "shim_miscount.h"
#include "shim_rig.h"

static struct puppet start_managed(void)
{
	return puppet_start(&(struct puppet_options){.socket_path = rig_path});
}

static struct puppet_report report_of(const struct puppet *p, int who)
{
	return puppet_do(p, who, (struct puppet_request){.op = PUPPET_REPORT}).report;
}

static uint64_t map_pages(const struct puppet *p, int who, uint32_t pages, uint64_t seed)
{
	return puppet_do(p, who,
			 (struct puppet_request){.op = PUPPET_MAP, .pages = pages, .seed = seed})
		.address;
}

static int64_t do_range(const struct puppet *p, int who, enum puppet_op op, uint64_t address,
			uint32_t pages, uint64_t seed)
{
	return puppet_do(p, who,
			 (struct puppet_request){
				 .op = op, .pages = pages, .address = address, .seed = seed})
		.value;
}

/** Pages that are not as they were filled. Faults in whatever is out. */
static int64_t count_wrong(const struct puppet *p, int who, uint64_t address, uint32_t pages,
			   uint64_t seed)
{
	return do_range(p, who, PUPPET_CHECK, address, pages, seed);
}

static uint64_t page_at(uint64_t address, uint64_t page)
{
	return address + page * USW_PAGE_BYTES;
}

// --- not being seen -----------------------------------------------------------------------------

static struct puppet_report bare_report(void)
{
	struct puppet p = puppet_start(&(struct puppet_options){0});
	struct puppet_report report = report_of(&p, 0);

	puppet_end(&p);
	return report;
}

static void report_print(const char *whose, const struct puppet_report *r)
{
	printf("%s: fds %d (%#lx), signals %#lx blocked %#lx pending, threads %d, tasks %d, "
	       "errno %d, wait %d (errno %d), children %d, unshare %d\n",
	       whose, r->fd_count, r->open_fds, r->blocked_signals, r->pending_signals,
	       r->thread_count, r->task_count, r->start_errno, r->wait_result, r->wait_errno,
	       r->children_listed, r->unshare_errno);
}

static bool is_like_bare(const struct puppet *p, int who)
{
	struct puppet_report bare = bare_report();
	struct puppet_report managed = report_of(p, who);

	if (memcmp(&bare, &managed, sizeof(bare)) == 0)
		return true;
	report_print("bare", &bare);
	report_print("managed", &managed);
	return false;
}

static void test_a_program_sees_no_trace(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address;

	struct puppet_report bare = bare_report();
	check(bare.thread_count == 1 && bare.task_count == 1 && bare.start_errno == 0);
	check(bare.wait_result == -1 && bare.wait_errno == ECHILD);
	check(is_like_bare(&p, 0));

	target_arm(t);
	address = map_pages(&p, 0, 16, 1);
	target_register(t, address, 16);
	check(rig_evict(t, address, 16, 0) == 0);
	check(count_wrong(&p, 0, address, 16, 1) == 0);
	check(is_like_bare(&p, 0));
	rig_end(&p, t);
}

static int count_entries(const char *format, pid_t pid)
{
	char path[64];
	DIR *folder;
	int count = 0;

	snprintf(path, sizeof(path), format, pid);
	folder = opendir(path);
	while (folder && readdir(folder))
		count++;
	if (folder)
		closedir(folder);
	return count - 2;
}

static bool status_has(pid_t pid, const char *line_wanted)
{
	char path[64];
	char line[256];
	bool found = false;
	FILE *status;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	status = fopen(path, "re");
	while (status && fgets(line, sizeof(line), status))
		found |= strcmp(line, line_wanted) == 0;
	if (status)
		fclose(status);
	return found;
}

static void test_hands_is_an_orphan_with_four_descriptors(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	pid_t hands = rig_hands(t);
	char parent[64];
	char path[64];
	char cwd[64] = {0};

	snprintf(parent, sizeof(parent), "PPid:\t%d\n", getpid());
	snprintf(path, sizeof(path), "/proc/%d/cwd", hands);
	check(status_has(hands, "Name:\tuffdswap-hands\n"));
	check(rig_wait_for(status_has(hands, parent))); /* when the middle task has ended */
	check(status_has(hands, "SigBlk:\tfffffffffffbfeff\n") || /* all but KILL and STOP */
	      status_has(hands, "SigBlk:\tfffffffe7ffbfeff\n"));
	check(count_entries("/proc/%d/fd", hands) == 4);
	check(readlink(path, cwd, sizeof(cwd) - 1) == 1 && !strcmp(cwd, "/"));
	check(getsid(hands) == hands);
	check(rig_sender(t->connection) == hands);
	rig_end(&p, t);
}

static int become_subreaper(int unused)
{
	(void)unused;
	return prctl(PR_SET_CHILD_SUBREAPER, 1);
}

/** Have a process fork, and refuse the child, so that it has no hands. */
static void fork_refused(const struct puppet *p, int who)
{
	check(puppet_do(p, who, (struct puppet_request){.op = PUPPET_FORK}).value > 0);
	close(rig_accept());
	report_of(p, who + 1);
}

/** It would inherit hands; and it has to be one again afterwards. */
static void test_a_subreaper_does_not_inherit_its_hands(void)
{
	struct puppet p = puppet_start(
		&(struct puppet_options){.socket_path = rig_path, .before_exec = become_subreaper});
	struct target *t = target_accept();

	check(is_like_bare(&p, 0));
	fork_refused(&p, 0);
	fork_refused(&p, 1);
	puppet_send(&p, 1, (struct puppet_request){.op = PUPPET_EXIT});
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_REAP}).value == 0);
	puppet_send(&p, 2, (struct puppet_request){.op = PUPPET_EXIT});
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_REAP}).value == 0);
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_REAP}).value == -ECHILD);
	rig_end(&p, t);
}

static struct puppet start_in_pid_namespace(void)
{
	int ours = open("/proc/self/ns/pid", O_RDONLY | O_CLOEXEC);
	struct puppet p;

	must(ours >= 0 && unshare(CLONE_NEWPID) == 0);
	p = start_managed();
	must(setns(ours, CLONE_NEWPID) == 0);
	close(ours);
	return p;
}

/** There every orphan is a child of the program, so hands is none. */
static void test_the_first_process_of_a_namespace_does_not_wait_for_hands(void)
{
	struct puppet p = start_in_pid_namespace();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 21);
	pid_t hands = rig_sender(t->connection);

	check(hands != rig_hands(t)); /* the number that it has there is another one's here */
	check(status_has(hands, "Name:\tuffdswap-hands\n"));
	target_arm(t);
	target_register(t, address, 16);
	check(rig_evict(t, address, 16, 0) == 0);
	check(count_wrong(&p, 0, address, 16, 21) == 0);
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_REAP}).value == -ECHILD);
	check(report_of(&p, 0).pending_signals == 0);
	puppet_end(&p);
	target_destroy(t);
}

// --- evict --------------------------------------------------------------------------------------

static void test_evicted_pages_are_in_their_slots_and_come_back(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 64, 2);
	struct usw_run runs[] = {
		{address, 10, 100},
		{page_at(address, 20), 1, 5},
		{page_at(address, 30), 34, USW_STANDBY_SLOTS - 34},
	};

	target_arm(t);
	target_register(t, address, 64);
	check(rig_command(t, USW_OP_EVICT, rig_epoch(t), runs, 3) == 0);
	check(ring_moved_count(t) == 45);
	check(rig_present(t, address, 64) == 64 - 45);
	check(rig_stages_empty(t));
	check(rig_slots_right(t, 100, 10, 2) == 10);
	check(pattern_matches((uint64_t *)(t->standby + 5 * USW_PAGE_BYTES), 2, 20));
	check(pattern_matches((uint64_t *)(t->standby + (USW_STANDBY_SLOTS - 1) * USW_PAGE_BYTES),
			      2, 63));
	check(count_wrong(&p, 0, address, 64, 2) == 0);

	/* Whole batches, again and again through the same stages. */
	uint64_t large = map_pages(&p, 0, 2048, 3);
	target_register(t, large, 2048);
	for (int round = 0; round < 3; round++) {
		for (uint32_t first = 0; first < 2048; first += USW_BATCH_PAGES_MAX)
			check(rig_evict(t, page_at(large, first), USW_BATCH_PAGES_MAX, first) == 0);
		check(rig_present(t, large, 2048) == 0);
		check(rig_slots_right(t, 0, 2048, 3) == 2048);
		check(count_wrong(&p, 0, large, 2048, 3) == 0);
	}
	rig_end(&p, t);
}

static void test_holes_in_a_run_do_not_stop_it(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 32, 4);

	check(do_range(&p, 0, PUPPET_PUNCH, page_at(address, 3), 5, 0) == 0);
	target_arm(t);
	target_register(t, address, 32);
	memset(t->standby, 0xee, 32 * USW_PAGE_BYTES);
	check(rig_evict(t, address, 32, 0) == ENOENT);
	check(ring_moved_count(t) == 27);
	check(rig_slots_right(t, 0, 3, 4) == 3);
	/* Nothing is made of a hole: zeros in its slot would be taken for its content. */
	for (uint32_t page = 3; page < 8; page++) {
		check(!ring_moved(t, page));
		check((unsigned char)t->standby[page * USW_PAGE_BYTES] == 0xee);
	}
	check(count_wrong(&p, 0, address, 3, 4) == 0);
	check(do_range(&p, 0, PUPPET_ZEROS, page_at(address, 3), 5, 0) == 0);
	check(count_wrong(&p, 0, address, 32, 4) == 5);
	rig_end(&p, t);
}

static void test_a_run_without_memory_leaves_the_others_alone(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 5);
	struct usw_run runs[] = {
		{USW_HUGE_BYTES, 4, 0}, /* nothing is mapped there */
		{address, 16, 4},
	};

	target_arm(t);
	target_register(t, address, 16);
	check(rig_command(t, USW_OP_EVICT, rig_epoch(t), runs, 2) != 0);
	check(ring_moved_count(t) == 16 && !ring_moved(t, 0) && ring_moved(t, 4));
	check(rig_slots_right(t, 4, 16, 5) == 16);
	check(count_wrong(&p, 0, address, 16, 5) == 0);
	rig_end(&p, t);
}

static uint64_t smaps_kib(const struct target *t, uint64_t address, const char *field)
{
	char line[512];
	char wanted[32];
	bool inside = false;
	uint64_t value = 0;
	int copy = dup(t->fds[USW_FD_SMAPS]);
	FILE *smaps;

	lseek(copy, 0, SEEK_SET);
	smaps = fdopen(copy, "r");
	must(smaps);
	snprintf(wanted, sizeof(wanted), "%s:", field);
	while (fgets(line, sizeof(line), smaps)) {
		unsigned long start;
		unsigned long end;

		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start <= address && address < end;
		else if (inside && !strncmp(line, wanted, strlen(wanted)))
			value = strtoull(line + strlen(wanted), NULL, 10);
	}
	fclose(smaps);
	return value;
}

/** Returns false where there are no huge pages to be had just now. */
static bool test_a_huge_page_goes_whole(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = puppet_do(&p, 0,
				     (struct puppet_request){.op = PUPPET_MAP,
							     .pages = 2 * USW_HUGE_PAGES,
							     .seed = 6,
							     .huge = 1})
				   .address;
	struct usw_run run = {address, USW_HUGE_PAGES, 1024};
	bool is_huge = smaps_kib(t, address, "AnonHugePages") >= 2 * USW_HUGE_BYTES / 1024;

	target_arm(t);
	target_register(t, address, 2 * USW_HUGE_PAGES);
	for (int round = 0; is_huge && round < 2; round++, run.address += USW_HUGE_BYTES) {
		check(rig_command(t, USW_OP_EVICT_HUGE, rig_epoch(t), &run, 1) == 0);
		check(ring_moved_count(t) == USW_HUGE_PAGES);
		for (uint64_t i = 0; i < USW_HUGE_PAGES; i++)
			check(pattern_matches((uint64_t *)(t->standby + (1024 + i) * USW_PAGE_BYTES),
					      6, round * USW_HUGE_PAGES + i));
		check(rig_stages_empty(t));
	}
	check(count_wrong(&p, 0, address, 2 * USW_HUGE_PAGES, 6) == 0);
	rig_end(&p, t);
	return is_huge;
}

// --- pages shared since a fork ------------------------------------------------------------------

static void test_shared_pages_stay_until_they_are_taken_over(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 7);
	struct usw_run run = {address, 16, 0};
	struct target *child;

	target_arm(t);
	target_register(t, address, 16);
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_FORK}).value > 0);
	check(rig_wait_for(t->child != NULL));
	child = t->child;
	target_accept_fork(child);

	/* The parent has written to pages 5 and 6 since: those are its own, the rest is shared. */
	for (uint64_t i = 5; i < 7; i++)
		check(do_range(&p, 0, PUPPET_FILL, page_at(address, i), 1, 70 + i) == 0);
	check(rig_evict(t, address, 16, 0) == EBUSY);
	check(ring_moved_count(t) == 2 && ring_moved(t, 5) && ring_moved(t, 6));
	check(rig_present(t, address, 16) == 14);
	check(count_wrong(&p, 0, page_at(address, 5), 1, 75) == 0);

	check(rig_command(t, USW_OP_UNSHARE, rig_epoch(t), &run, 1) == 0);
	check(ring_moved_count(t) == 16);
	check(rig_evict(t, address, 16, 0) == 0);
	check(rig_present(t, address, 16) == 0);
	check(rig_stages_empty(t));
	check(count_wrong(&p, 0, address, 5, 7) == 0);
	check(count_wrong(&p, 1, address, 16, 7) == 0);

	puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_REPORT});
	puppet_send(&p, 1, (struct puppet_request){.op = PUPPET_EXIT});
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_REAP}).value == 0);
	ring_bell(child, USW_BELL_QUIT);
	check(rig_reap(rig_hands(child)) == 0);
	target_destroy(child);
	rig_end(&p, t);
}

// --- fork ---------------------------------------------------------------------------------------

static void end_child(const struct puppet *p, int who, struct target *child)
{
	puppet_send(p, who, (struct puppet_request){.op = PUPPET_EXIT});
	check(puppet_do(p, who - 1, (struct puppet_request){.op = PUPPET_REAP}).value == 0);
	ring_bell(child, USW_BELL_QUIT);
	check(rig_reap(rig_hands(child)) == 0);
	target_destroy(child);
}

static void test_children_of_an_armed_target_read_their_token(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 32, 8);
	struct target *child;
	struct target *grandchild;

	target_arm(t);
	target_register(t, address, 32);
	check(rig_evict(t, address, 16, 0) == 0);
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_FORK}).value > 0);
	check(rig_wait_for(t->child != NULL));
	child = t->child;
	target_accept_fork(child);
	check(child->hello.token_page == t->hello.token_page);
	check(rig_hands(child) != rig_hands(t));
	check(is_like_bare(&p, 1));
	check(count_wrong(&p, 1, address, 32, 8) == 0);

	/* The child's own hands, through its own stages. */
	uint64_t own = map_pages(&p, 1, 32, 9);
	target_register_stages(child);
	target_register(child, own, 32);
	check(rig_evict(child, own, 32, 0) == 0);
	check(rig_slots_right(child, 0, 32, 9) == 32);

	check(puppet_do(&p, 1, (struct puppet_request){.op = PUPPET_FORK}).value > 0);
	check(rig_wait_for(child->child != NULL));
	grandchild = child->child;
	target_accept_fork(grandchild);
	check(grandchild->token != child->token);
	check(count_wrong(&p, 2, own, 32, 9) == 0);
	check(count_wrong(&p, 1, own, 32, 9) == 0);
	check(count_wrong(&p, 0, address, 32, 8) == 0);

	end_child(&p, 2, grandchild);
	end_child(&p, 1, child);
	rig_end(&p, t);
}

static void test_children_of_an_unarmed_target_are_images(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	struct target *child;
	struct target *grandchild;

	puppet_send(&p, 0, (struct puppet_request){.op = PUPPET_FORK});
	child = target_accept();
	check(puppet_receive(&p, 0).value > 0);
	check(is_like_bare(&p, 1));

	/* Armed after it has read its token page; its own child must find a hole there again. */
	target_arm(child);
	check(puppet_do(&p, 1, (struct puppet_request){.op = PUPPET_FORK}).value > 0);
	check(rig_wait_for(child->child != NULL));
	grandchild = child->child;
	target_accept_fork(grandchild);

	end_child(&p, 2, grandchild);
	end_child(&p, 1, child);
	rig_end(&p, t);
}

static void test_a_refused_child_is_served_without_hands(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 10);
	struct target *child;

	target_arm(t);
	target_register(t, address, 16);
	check(rig_evict(t, address, 16, 0) == 0);
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_FORK}).value > 0);
	check(rig_wait_for(t->child != NULL));
	child = t->child;
	child->connection = rig_accept();
	check(rig_receive_hello(child) == USW_FD_UFFD);
	rig_send_welcome(child->connection, USW_WELCOME_REFUSED, -1);
	check(count_wrong(&p, 1, address, 16, 10) == 0);
	check(puppet_do(&p, 1, (struct puppet_request){.op = PUPPET_REPORT}).area_mappings == 0);
	puppet_send(&p, 1, (struct puppet_request){.op = PUPPET_EXIT});
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_REAP}).value == 0);
	target_destroy(child);
	rig_end(&p, t);
}

// --- events, epochs and the gate ----------------------------------------------------------------

static void test_an_unread_event_stops_a_command(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 11);
	uint64_t other = map_pages(&p, 0, 16, 12);

	target_arm(t);
	target_register(t, address, 16);
	target_register(t, other, 16);
	t->deaf = true;
	check(do_range(&p, 0, PUPPET_UNMAP, other, 16, 0) == 0);
	check(rig_readable(t->uffd, RIG_PATIENCE_MS));
	check(rig_evict(t, address, 16, 0) == EAGAIN);
	check(ring_moved_count(t) == 0);
	check(rig_present(t, address, 16) == 16);

	uint32_t before = rig_epoch(t);
	t->deaf = false;
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_JOIN}).value == 0);
	check(rig_wait_for(rig_epoch(t) != before));
	check(rig_evict(t, address, 16, 0) == 0);
	check(count_wrong(&p, 0, address, 16, 11) == 0);
	rig_end(&p, t);
}

static void test_a_stale_epoch_moves_nothing(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 13);
	struct usw_run run = {address, 16, 0};

	target_arm(t);
	target_register(t, address, 16);
	for (uint32_t op = USW_OP_EVICT; op <= USW_OP_UNSHARE; op++) {
		if (op == USW_OP_EVICT_HUGE)
			continue;
		check(rig_command(t, op, rig_epoch(t) - 1, &run, 1) == ECANCELED);
		check(ring_moved_count(t) == 0);
	}
	check(rig_present(t, address, 16) == 16);
	rig_end(&p, t);
}

static void test_the_gate_keeps_hands_out(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 14);

	target_arm(t);
	target_register(t, address, 16);
	gate_enter(t);
	check(rig_evict(t, address, 16, 0) == ECANCELED); /* it waits for a second, then gives up */
	check(ring_moved_count(t) == 0);
	check(rig_present(t, address, 16) == 16);
	gate_leave(t);
	check(rig_evict(t, address, 16, 0) == 0);
	check(count_wrong(&p, 0, address, 16, 14) == 0);
	rig_end(&p, t);
}

struct gatekeeper {
	struct target *t;
	uint64_t address;
	_Atomic bool stop;
	_Atomic uint32_t visits;
};

/** Inside the gate the world must stand still. */
static void *keep_gate(void *argument)
{
	struct gatekeeper *keeper = argument;

	while (!keeper->stop) {
		uint32_t present;

		gate_enter(keeper->t);
		present = rig_present(keeper->t, keeper->address, 512);
		check(rig_present(keeper->t, keeper->address, 512) == present);
		gate_leave(keeper->t);
		keeper->visits++;
		poll(NULL, 0, 1); /* hands gets its turn */
	}
	return NULL;
}

/** Put up to 64 pages that are still there into a command, each a run of its own. */
static uint32_t runs_of_present_pages(const struct target *t, uint64_t address,
				      struct usw_run *runs)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < 512 && count < 64; i++) {
		if (rig_present(t, page_at(address, i), 1))
			runs[count++] = (struct usw_run){page_at(address, i), 1, i};
	}
	return count;
}

static void test_nothing_moves_while_the_agent_has_the_gate(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	struct gatekeeper keeper = {.t = t, .address = map_pages(&p, 0, 512, 21)};
	struct usw_run runs[64];
	pthread_t thread;

	target_arm(t);
	target_register(t, keeper.address, 512);
	for (int round = 0; round < 4; round++) {
		uint32_t visits = keeper.visits;
		uint32_t count;

		keeper.stop = false;
		must(pthread_create(&thread, NULL, keep_gate, &keeper) == 0);
		check(rig_wait_for(keeper.visits != visits));
		while ((count = runs_of_present_pages(t, keeper.address, runs))) {
			int error = rig_command(t, USW_OP_EVICT, rig_epoch(t), runs, count);

			/* On a busy machine the keeper may lose its processor inside the gate. */
			check(error == 0 || error == ECANCELED);
		}
		keeper.stop = true;
		pthread_join(thread, NULL);
		check(count_wrong(&p, 0, keeper.address, 512, 21) == 0);
	}
	rig_end(&p, t);
}

// --- when the kernel says no --------------------------------------------------------------------

static uint64_t stage_in(const struct target *t)
{
	return t->hello.area_start + USW_AREA_STAGE_IN_OFFSET;
}

static uint64_t stage_out(const struct target *t)
{
	return t->hello.area_start + USW_AREA_STAGE_OUT_OFFSET;
}

static void test_a_failing_second_move_loses_nothing(void)
{
	static const int errors[] = {EBUSY, EAGAIN, EINVAL, ENOMEM, EEXIST, ENOENT};
	struct injection injection;
	struct puppet p = inject_start(&injection);
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 22);

	target_arm(t);
	target_register(t, address, 16);
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		inject_order(&injection, stage_out(t), errors[i], 50);
		check(rig_evict(t, address, 16, (uint32_t)i * 16) == 0);
		check(injection.injected == 50);
		check(ring_moved_count(t) == 16);
		check(rig_stages_empty(t));
		check(rig_slots_right(t, (uint32_t)i * 16, 16, 22) == 16);
		check(count_wrong(&p, 0, address, 16, 22) == 0);
	}
	rig_end(&p, t);
	inject_end(&injection);
}

static void test_a_page_that_stays_in_the_stage_is_fetched_later(void)
{
	struct injection injection;
	struct puppet p = inject_start(&injection);
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 23);

	target_arm(t);
	target_register(t, address, 16);
	inject_order(&injection, stage_out(t), EBUSY, INT32_MAX);
	check(rig_evict(t, address, 8, 0) == 0);
	check(ring_moved_count(t) == 8);
	check(rig_slots_right(t, 0, 8, 23) == 8);
	check(rig_present(t, stage_in(t), 512) == 1);

	/* Still stuck: its place in the stage cannot be used, the others can. */
	check(rig_evict(t, page_at(address, 8), 8, 8) == EEXIST);
	check(ring_moved_count(t) == 7 && !ring_moved(t, 0));
	check(rig_present(t, stage_in(t), 512) == 1);
	check(rig_present(t, page_at(address, 8), 1) == 1);

	inject_order(&injection, 0, 0, 0);
	check(rig_evict(t, page_at(address, 8), 1, 8) == 0);
	check(rig_stages_empty(t));
	check(count_wrong(&p, 0, address, 16, 23) == 0);
	rig_end(&p, t);
	inject_end(&injection);
}

/** Out of their places, and from stage to stage. False: hands cannot be traced here. */
static bool test_moves_that_are_not_counted_lose_nothing(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 26);
	const uint64_t places[] = {stage_in(t), stage_in(t) + 3 * USW_PAGE_BYTES, stage_out(t)};
	bool is_permitted = true;

	target_arm(t);
	target_register(t, address, 16);
	for (uint32_t i = 0; is_permitted && i < 3; i++) {
		struct miscount miscount = {.hands = rig_hands(t), .to = places[i]};

		/* A hole, so that the second place begins a run. */
		if (i == 1)
			check(rig_evict(t, page_at(address, 2), 1, 200) == 0);
		is_permitted = miscount_order(&miscount);
		if (!is_permitted)
			break;
		rig_evict(t, address, 16, i * 16);
		miscount_end(&miscount);
		check(ring_moved_count(t) == (i == 1 ? 15 : 16));
		check(rig_slots_right(t, i * 16, 16, 26) == (i == 1 ? 15 : 16));
		check(rig_stages_empty(t));
		check(count_wrong(&p, 0, address, 16, 26) == 0);
	}
	rig_end(&p, t);
	return is_permitted;
}

/** An event ends the batch before the pages could be asked for again. */
static void test_moves_that_are_not_counted_are_known_at_once(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 27);

	target_arm(t);
	target_register(t, address, 16);
	for (uint32_t counted = 0; counted < 16; counted += 5) {
		struct miscount miscount = {.hands = rig_hands(t),
					    .to = stage_in(t),
					    .counted = counted * (int64_t)USW_PAGE_BYTES,
					    .raised = &t->ring->epoch};

		must(miscount_order(&miscount));
		rig_evict(t, address, 16, 0);
		miscount_end(&miscount);
		check(ring_moved_count(t) == 16);
		check(rig_slots_right(t, 0, 16, 27) == 16);
		check(rig_stages_empty(t));
		check(count_wrong(&p, 0, address, 16, 27) == 0);
	}
	rig_end(&p, t);
}

static void test_stages_that_are_torn_up_end_the_program(void)
{
	struct injection injection;
	struct puppet p = inject_start(&injection);
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 8, 24);
	struct usw_run run = {address, 8, 0};
	pid_t hands = rig_hands(t);
	int status;

	target_arm(t);
	target_register(t, address, 8);
	inject_order(&injection, stage_out(t), ENOENT, INT32_MAX);
	ring_post(t, USW_OP_EVICT, rig_epoch(t), &run, 1);
	status = rig_reap(p.pid);
	check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	check(WIFEXITED(rig_reap(hands)));
	check(!ring_is_done(t));
	for (int i = 0; i < PUPPET_GENERATIONS; i++)
		close(p.sockets[i]);
	target_destroy(t);
	inject_end(&injection);
}

static void test_locked_stages_are_unlocked(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address;

	target_arm(t);
	/* Fills the stages as well: the fake agent answers with pages of zeros. */
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_LOCK_NOW}).value == 0);
	address = map_pages(&p, 0, 512, 25);
	target_register(t, address, 512);
	rig_evict(t, address, 512, 0); /* meets full stages, and empties them */
	for (int round = 0; round < 2; round++) {
		check(rig_evict(t, address, 512, 0) == 0);
		check(rig_present(t, address, 512) == 0);
		check(rig_present(t, stage_in(t), 2 * USW_HUGE_PAGES) == 0);
		check(rig_slots_right(t, 0, 512, 25) == 512);
		check(count_wrong(&p, 0, address, 512, 25) == 0);
	}
	rig_end(&p, t);
}

// --- garbage ------------------------------------------------------------------------------------

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

struct garbage {
	struct target *t;
	uint64_t victim; /* 512 pages whose content does not matter */
	uint64_t state;
	_Atomic bool stop;
};

static struct usw_run garbage_run(struct garbage *g)
{
	uint64_t r = random_next(&g->state);
	uint64_t area = g->t->hello.area_start;
	struct usw_run run = {.page_count = random_next(&g->state) % 40,
			      .slot = random_next(&g->state) % (USW_STANDBY_SLOTS + 8)};

	switch (r % 8) {
	case 0:
		run.address = random_next(&g->state);
		break;
	case 1:
		run.address = UINT64_MAX - 4095;
		break;
	case 2: /* hands' own stack, ring and stages */
		run.address = area + (random_next(&g->state) % USW_AREA_BYTES & ~UINT64_C(4095));
		break;
	case 3: /* from below into the area; what lies below is not for garbage */
		run.page_count += 9;
		run.address = area - 8 * USW_PAGE_BYTES;
		break;
	case 4:
		run.page_count = (uint32_t)random_next(&g->state);
		run.slot = (uint32_t)random_next(&g->state);
		run.address = g->victim;
		break;
	default:
		run.address = page_at(g->victim, random_next(&g->state) % 472);
		break;
	}
	return run;
}

static void garbage_write(struct garbage *g)
{
	struct usw_ring *ring = g->t->ring;
	uint64_t r = random_next(&g->state);
	uint32_t run_count = r % 16 ? r % 9 : (uint32_t)(r >> 32);
	uint32_t page_count = 0;

	for (uint32_t i = 0; i < USW_BATCH_RUNS_MAX && i < run_count; i++) {
		ring->runs[i] = garbage_run(g);
		page_count += ring->runs[i].page_count;
	}
	ring->op = (r >> 8) % 8 ? (r >> 16) % 5 : (uint32_t)(r >> 20);
	ring->run_count = run_count;
	ring->page_count = (r >> 40) % 8 ? page_count : (uint32_t)(r >> 10);
	ring->command_epoch = (r >> 44) % 4 ? ring->epoch : (uint32_t)r;
	ring->agent_waiting = (uint32_t)(r >> 50) % 3;
	ring->error = (int32_t)r;
}

/** The worst program: it writes to the ring while hands reads it. */
static void *garbage_scribble(void *argument)
{
	struct garbage *g = argument;
	struct garbage own = {.t = g->t, .victim = g->victim, .state = 0x5eed};

	while (!g->stop) {
		struct usw_run run = garbage_run(&own);

		g->t->ring->runs[random_next(&own.state) % 4] = run;
		g->t->ring->page_count = (uint32_t)random_next(&own.state) % 200;
		g->t->ring->done_seq = (uint32_t)own.state;
		poll(NULL, 0, 1);
	}
	return NULL;
}

static void garbage_rounds(struct garbage *g, int rounds)
{
	for (int i = 0; i < rounds; i++) {
		garbage_write(g);
		ring_submit(g->t);
		must(ring_wait(g->t));
	}
}

static void test_garbage_in_the_ring_harms_nobody_else(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 64, 15);
	struct garbage g = {.t = t, .victim = map_pages(&p, 0, 512, 16), .state = 0x1234567};
	pthread_t scribbler;

	target_arm(t);
	target_register(t, address, 64);
	target_register(t, g.victim, 512);
	garbage_rounds(&g, 4000);

	/*
	 * While somebody scribbles, done_seq means nothing: only "hands still answers" is tested.
	 */
	must(pthread_create(&scribbler, NULL, garbage_scribble, &g) == 0);
	for (int i = 0; i < 300; i++) {
		garbage_write(&g);
		ring_submit(t);
		poll(NULL, 0, 1);
	}
	g.stop = true;
	pthread_join(scribbler, NULL);
	garbage_rounds(&g, 1); /* with that done, hands has none of the scribbled ones in work */

	check(rig_evict(t, address, 64, 0) == 0);
	check(rig_slots_right(t, 0, 64, 15) == 64);
	check(count_wrong(&p, 0, address, 64, 15) == 0);
	check(rig_stages_empty(t));
	rig_end(&p, t);
}

// --- handshakes that fail -----------------------------------------------------------------------

static void check_no_dead_child(void)
{
	int status;
	pid_t pid = waitpid(-1, &status, WNOHANG | __WALL);

	if (pid > 0)
		printf("process %d has ended with status %#x and was nobody's\n", pid, status);
	check(pid <= 0);
}

static void check_runs_natively(struct puppet *p)
{
	struct puppet_reply reply = puppet_do(p, 0, (struct puppet_request){.op = PUPPET_REPORT});
	uint64_t address = map_pages(p, 0, 8, 17);

	check(is_like_bare(p, 0));
	check(reply.area_mappings == 0);
	check(count_wrong(p, 0, address, 8, 17) == 0);
	/* A forked child does not try again. */
	check(puppet_do(p, 0, (struct puppet_request){.op = PUPPET_FORK}).value > 0);
	puppet_send(p, 1, (struct puppet_request){.op = PUPPET_EXIT});
	check(puppet_do(p, 0, (struct puppet_request){.op = PUPPET_REAP}).value == 0);
	check(!rig_readable(rig_listener, 0));
	puppet_end(p);
	/* No hands either: we would have inherited it. */
	check_no_dead_child();
}

/** The agent says something else than a welcome and closes, or only closes (bytes = 0). */
static void check_answer_leaves_inert(const void *answer, size_t bytes)
{
	struct puppet p = start_managed();
	struct target *t = target_create();

	t->connection = rig_accept();
	check(rig_receive_hello(t) == USW_FD_COUNT);
	if (bytes)
		check(send(t->connection, answer, bytes, MSG_NOSIGNAL) == (ssize_t)bytes);
	t->uffd = t->fds[USW_FD_UFFD];
	target_destroy(t);
	check_runs_natively(&p);
}

static void test_a_bad_welcome_leaves_the_program_alone(void)
{
	struct usw_welcome refused = {USW_WIRE_MAGIC, USW_WIRE_VERSION, USW_WELCOME_REFUSED, 0};
	struct usw_welcome version = {USW_WIRE_MAGIC, USW_WIRE_VERSION + 1, USW_WELCOME_OK, 0};
	struct usw_welcome magic = {~USW_WIRE_MAGIC, USW_WIRE_VERSION, USW_WELCOME_OK, 0};
	struct usw_welcome unknown = {USW_WIRE_MAGIC, USW_WIRE_VERSION, 77, 0};
	struct usw_welcome device = {USW_WIRE_MAGIC, USW_WIRE_VERSION, USW_WELCOME_DEVICE, 0};

	check_answer_leaves_inert(&refused, sizeof(refused));
	check_answer_leaves_inert(&version, sizeof(version));
	check_answer_leaves_inert(&magic, sizeof(magic));
	check_answer_leaves_inert(&unknown, sizeof(unknown));
	check_answer_leaves_inert(&device, sizeof(device));
	check_answer_leaves_inert(&refused, 3);
	check_answer_leaves_inert(NULL, 0);
}

static void check_start_is_native(const struct puppet_options *options)
{
	struct puppet p = puppet_start(options);

	check_runs_natively(&p);
}

static void test_without_an_agent_nothing_happens(void)
{
	char path[] = "/tmp/usw-test-shim-nobody";
	char long_path[150];

	memset(long_path, 'x', sizeof(long_path) - 1);
	long_path[0] = '/';
	long_path[sizeof(long_path) - 1] = 0;
	check_start_is_native(&(struct puppet_options){.socket_path = NULL});
	check_start_is_native(&(struct puppet_options){.socket_path = ""});
	check_start_is_native(&(struct puppet_options){.socket_path = "relative"});
	check_start_is_native(&(struct puppet_options){.socket_path = path});
	check_start_is_native(&(struct puppet_options){.socket_path = long_path});
	check_start_is_native(&(struct puppet_options){.socket_path = rig_path,
						       .extra_env = "UFFDSWAP_DISABLE=1"});
}

// --- who listens --------------------------------------------------------------------------------

#define NOBODY 65534

struct stranger {
	struct sockaddr_un address;
	int listener;
	pid_t pid;
};

/** A process of another user that listens; for who listens is who called listen(2). */
static struct stranger stranger_start(uid_t uid)
{
	struct stranger s = {.address = {.sun_family = AF_UNIX}};
	int status;

	snprintf(s.address.sun_path, sizeof(s.address.sun_path), "%s/other", rig_folder);
	s.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	must(bind(s.listener, (struct sockaddr *)&s.address, sizeof(s.address)) == 0);
	must(chmod(s.address.sun_path, 0666) == 0);
	s.pid = fork();
	must(s.pid >= 0);
	if (s.pid == 0) {
		if (setresuid(uid, uid, uid) || listen(s.listener, 8))
			_exit(1);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		raise(SIGSTOP); /* it has to live, and no more */
	}
	must(waitpid(s.pid, &status, WUNTRACED) == s.pid && WIFSTOPPED(status));
	return s;
}

static void stranger_end(struct stranger *s)
{
	kill(s->pid, SIGKILL);
	rig_reap(s->pid);
	close(s->listener);
	unlink(s->address.sun_path);
}

static int leave_user_namespace(int unused)
{
	(void)unused;
	return unshare(CLONE_NEWUSER);
}

/** Whether a program sends anything to a listener of that user. */
static bool tells(struct puppet_options options, uid_t listener_uid)
{
	struct stranger s = stranger_start(listener_uid);
	struct target *t = target_create();
	struct puppet p;
	char first;
	bool told;

	options.socket_path = s.address.sun_path;
	p = puppet_start(&options);
	must(rig_readable(s.listener, RIG_PATIENCE_MS));
	t->connection = accept4(s.listener, NULL, NULL, SOCK_CLOEXEC);
	must(rig_readable(t->connection, RIG_PATIENCE_MS));
	told = recv(t->connection, &first, 1, 0) == 1;
	target_destroy(t);
	check(is_like_bare(&p, 0));
	puppet_end(&p);
	stranger_end(&s);
	return told;
}

static void test_only_its_own_user_and_root_are_told_anything(void)
{
	struct puppet_options of_root = {0};
	struct puppet_options of_a_user = {.uid = 12345};
	struct puppet_options of_nobody = {.uid = NOBODY};

	check(!tells(of_root, of_a_user.uid));
	check(!tells(of_root, NOBODY));
	check(!tells(of_a_user, NOBODY));
	check(!tells(of_nobody, of_a_user.uid));
	check(tells(of_root, 0));
	check(tells(of_a_user, 0));
	check(tells(of_a_user, of_a_user.uid));
	check(tells(of_nobody, NOBODY));
}

/** There every user has the number of "nobody". */
static void test_a_user_without_a_number_knows_its_own(void)
{
	struct puppet_options unmapped = {.before_exec = leave_user_namespace};

	check(tells(unmapped, 0));
	check(!tells(unmapped, 12345));
	check(!tells(unmapped, NOBODY));
}

/** The program must not start before the agent has answered, nor wait for ever. */
static struct puppet start_unanswered(struct target *t)
{
	struct puppet p = start_managed();

	t->connection = rig_accept();
	check(rig_receive_hello(t) == USW_FD_COUNT);
	t->uffd = t->fds[USW_FD_UFFD];
	puppet_send(&p, 0, (struct puppet_request){.op = PUPPET_REPORT});
	check(!rig_readable(p.sockets[0], 100));
	return p;
}

static void test_a_silent_agent_is_left_behind(struct puppet *p, struct target *t)
{
	check(puppet_receive(p, 0).area_mappings == 0);
	target_destroy(t);
	check_runs_natively(p);
}

/** It waits for the agent's word on that, which here is to go on alone. */
static void check_gives_up(struct puppet *p, int error)
{
	struct target *t = target_create();

	t->connection = rig_accept();
	check(rig_receive_hello(t) == 0);
	check(t->hello.kind == USW_HELLO_GIVE_UP);
	check(t->hello.token == (uint64_t)error);
	puppet_send(p, 0, (struct puppet_request){.op = PUPPET_REPORT});
	check(!rig_readable(p->sockets[0], 100));
	target_destroy(t);
	check(puppet_receive(p, 0).area_mappings == 0);
	check_runs_natively(p);
}

/** What the program has forbidden itself, the shim may not do either: not in it, not in a child. */
static void test_what_is_forbidden_on_pain_of_death_is_not_done(void)
{
	check_start_is_native(&(struct puppet_options){.socket_path = rig_path,
						       .before_exec = puppet_forbid,
						       .before_exec_argument = SYS_socket});
	/* It can talk to the agent, but hands could not live. */
	struct puppet p =
		puppet_start(&(struct puppet_options){.socket_path = rig_path,
						      .before_exec = puppet_forbid,
						      .before_exec_argument = SYS_setsid});
	check_gives_up(&p, EPERM);

	p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 16, 22);

	target_arm(t);
	target_register(t, address, 16);
	check(rig_evict(t, address, 16, 0) == 0);
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_FORBID}).value == 0);
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_FORK}).value > 0);
	check(count_wrong(&p, 1, address, 16, 22) == 0);
	puppet_send(&p, 1, (struct puppet_request){.op = PUPPET_EXIT});
	check(puppet_do(&p, 0, (struct puppet_request){.op = PUPPET_REAP}).value == 0);
	check(!rig_readable(rig_listener, 0));
	target_destroy(t->child);
	rig_end(&p, t);
}

static void test_a_file_size_limit_is_respected_and_kept(void)
{
	struct puppet p = puppet_start(&(struct puppet_options){
		.socket_path = rig_path, .fsize_soft = 1 << 20, .fsize_hard = RLIM_INFINITY});
	struct target *t = target_accept();
	struct rlimit now;

	check(prlimit(p.pid, RLIMIT_FSIZE, NULL, &now) == 0);
	check(now.rlim_cur == 1 << 20 && now.rlim_max == RLIM_INFINITY);
	check(is_like_bare(&p, 0));
	rig_end(&p, t);

	p = puppet_start(&(struct puppet_options){
		.socket_path = rig_path, .fsize_soft = 1 << 20, .fsize_hard = 1 << 20});
	check_gives_up(&p, EFBIG);
}

/** A limit on descriptors is the program's own: the agent is told, and decides what follows. */
static void test_too_few_descriptors_are_told_before_the_program_starts(void)
{
	struct puppet p = puppet_start(&(struct puppet_options){
		.socket_path = rig_path, .nofile_soft = PUPPET_SOCKET + PUPPET_GENERATIONS + 6});

	check_gives_up(&p, EMFILE);
}

/** userfaultfd(2) and the device are both closed to "nobody": the agent's open device helps. */
static void test_a_device_from_the_agent_serves_an_unprivileged_program(void)
{
	struct puppet p =
		puppet_start(&(struct puppet_options){.socket_path = rig_path, .uid = 65534});
	struct target *t = target_create();
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	uint64_t address;

	t->connection = rig_accept();
	check(rig_receive_hello(t) == 0);
	check(t->hello.kind == USW_HELLO_DEVICE);
	rig_send_welcome(t->connection, USW_WELCOME_DEVICE, device);
	close(device);
	check(rig_receive_hello(t) == USW_FD_COUNT);
	check(t->hello.kind == USW_HELLO_IMAGE);
	t->uffd = t->fds[USW_FD_UFFD];
	target_welcome(t);
	check(is_like_bare(&p, 0));

	target_arm(t);
	address = map_pages(&p, 0, 16, 18);
	target_register(t, address, 16);
	check(rig_evict(t, address, 16, 0) == 0);
	check(count_wrong(&p, 0, address, 16, 18) == 0);
	rig_end(&p, t);

	p = puppet_start(&(struct puppet_options){.socket_path = rig_path, .uid = 65534});
	t = target_create();
	t->connection = rig_accept();
	check(rig_receive_hello(t) == 0);
	rig_send_welcome(t->connection, USW_WELCOME_REFUSED, -1);
	check(is_like_bare(&p, 0));
	target_destroy(t);
	puppet_end(&p);
}

// --- ends ---------------------------------------------------------------------------------------

static void test_the_bell_ends_hands_and_not_the_program(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	uint64_t address = map_pages(&p, 0, 8, 19);

	ring_bell(t, USW_BELL_WORK); /* for nothing: it looks and sleeps again */
	ring_bell(t, '?');
	ring_bell(t, USW_BELL_QUIT);
	check(rig_reap(rig_hands(t)) == 0);
	check(count_wrong(&p, 0, address, 8, 19) == 0);
	check(is_like_bare(&p, 0));
	target_destroy(t);
	puppet_end(&p);
}

static void test_without_an_agent_the_program_is_killed(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	pid_t hands = rig_hands(t);
	uint64_t address = map_pages(&p, 0, 8, 20);
	int uffd = dup(t->uffd); /* somebody (the launcher) still has it: no zeros meanwhile */
	uint64_t start_ms;
	int status;

	target_arm(t);
	target_register(t, address, 8);
	check(rig_evict(t, address, 8, 0) == 0);
	start_ms = rig_now_ms();
	target_destroy(t);
	status = rig_reap(p.pid);
	check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	check(rig_now_ms() - start_ms >= 900);
	check(WIFEXITED(rig_reap(hands)));
	close(uffd);
	for (int i = 0; i < PUPPET_GENERATIONS; i++)
		close(p.sockets[i]);
}

static void test_hands_leaves_when_program_and_agent_are_gone(void)
{
	struct puppet p = start_managed();
	struct target *t = target_accept();
	pid_t hands = rig_hands(t);

	report_of(&p, 0); /* it is through with the constructor, where it has a child to wait for */
	kill(p.pid, SIGKILL);
	check(WIFSIGNALED(rig_reap(p.pid)));
	check(kill(hands, 0) == 0);
	target_destroy(t);
	check(rig_reap(hands) == 0);
	for (int i = 0; i < PUPPET_GENERATIONS; i++)
		close(p.sockets[i]);
}

/** Returns what this machine or this build lacks, or NULL. */
static const char *what_is_missing(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
	const char *missing = NULL;
	int fd;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	return "the sanitizer's runtime has to be the first library of the target";
#endif
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		return "full-mode userfaultfd (root, or vm.unprivileged_userfaultfd=1)";
	if (ioctl(fd, UFFDIO_API, &api))
		missing = "UFFD_FEATURE_MOVE (Linux 6.8)";
	close(fd);
	return missing;
}

/** Whether a process of user "nobody" has no way of its own to a full-mode userfaultfd. */
static bool nobody_needs_the_agent(void)
{
	struct stat device;
	char allowed = '1';
	int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		must(read(fd, &allowed, 1) == 1);
		close(fd);
	}
	return geteuid() == 0 && allowed == '0' && stat("/dev/userfaultfd", &device) == 0 &&
	       !(device.st_mode & 0006);
}

static bool can_make_user_namespaces(void)
{
	int status = -1;
	pid_t pid = fork();

	must(pid >= 0);
	if (pid == 0)
		_exit(unshare(CLONE_NEWUSER) != 0);
	must(waitpid(pid, &status, 0) == pid);
	return geteuid() == 0 && status == 0;
}

int main(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], PUPPET_ARGUMENT))
		return puppet_main();
	const char *missing = what_is_missing();
	struct target *silent;
	struct puppet unanswered;

	setvbuf(stdout, NULL, _IOLBF, 0);
	alarm(300);
	if (missing) {
		printf("skipped: %s\n", missing);
		return 77;
	}
	silent = target_create();
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	rig_open();
	unanswered = start_unanswered(silent);
	run(test_a_program_sees_no_trace);
	run(test_hands_is_an_orphan_with_four_descriptors);
	run(test_a_subreaper_does_not_inherit_its_hands);
	if (geteuid() == 0)
		run(test_the_first_process_of_a_namespace_does_not_wait_for_hands);
	else
		printf("not root: hands in a PID namespace not tested\n");
	run(test_evicted_pages_are_in_their_slots_and_come_back);
	run(test_holes_in_a_run_do_not_stop_it);
	run(test_a_run_without_memory_leaves_the_others_alone);
	if (!run(test_a_huge_page_goes_whole))
		printf("no huge page to be had: eviction of one not tested\n");
	run(test_shared_pages_stay_until_they_are_taken_over);
	run(test_children_of_an_armed_target_read_their_token);
	run(test_children_of_an_unarmed_target_are_images);
	run(test_a_refused_child_is_served_without_hands);
	run(test_an_unread_event_stops_a_command);
	run(test_a_stale_epoch_moves_nothing);
	run(test_the_gate_keeps_hands_out);
	run(test_nothing_moves_while_the_agent_has_the_gate);
	run(test_a_failing_second_move_loses_nothing);
	run(test_a_page_that_stays_in_the_stage_is_fetched_later);
	if (run(test_moves_that_are_not_counted_lose_nothing))
		run(test_moves_that_are_not_counted_are_known_at_once);
	else
		printf("ptrace is not permitted: moves that are not counted not tested\n");
	run(test_stages_that_are_torn_up_end_the_program);
	run(test_locked_stages_are_unlocked);
	run(test_garbage_in_the_ring_harms_nobody_else);
	run(test_a_bad_welcome_leaves_the_program_alone);
	run(test_without_an_agent_nothing_happens);
	run(test_what_is_forbidden_on_pain_of_death_is_not_done);
	run(test_a_file_size_limit_is_respected_and_kept);
	if (geteuid() == 0)
		run(test_only_its_own_user_and_root_are_told_anything);
	else
		printf("not root: listeners of other users not tested\n");
	if (can_make_user_namespaces())
		run(test_a_user_without_a_number_knows_its_own);
	else
		printf("not root, or no user namespaces: users without a number not tested\n");
	run(test_too_few_descriptors_are_told_before_the_program_starts);
	if (nobody_needs_the_agent())
		run(test_a_device_from_the_agent_serves_an_unprivileged_program);
	else
		printf("not root, or userfaultfd is open to all: handing over the device not tested\n");
	run(test_the_bell_ends_hands_and_not_the_program);
	run(test_without_an_agent_the_program_is_killed);
	run(test_hands_leaves_when_program_and_agent_are_gone);
	rig_test = "test_a_silent_agent_is_left_behind";
	test_a_silent_agent_is_left_behind(&unanswered, silent);
	printf("%s\n", failures ? "FAILED" : "ok");
	return failures != 0;
}
