// SPDX-License-Identifier: MIT

/**
 * @file
 * Threads and signals over evicted memory: many faults at once, and threads that end in the middle.
 *
 * A fault that nobody waits for any more, two faults on one page, a stack that is itself evicted:
 * each is ordinary life for a program with threads.
 */

#include "program.h"

#include <pthread.h>
#include <setjmp.h>
#include <sys/time.h>
#if __has_include(<sys/rseq.h>)
#include <sys/rseq.h>
#endif

#define PAGES 1536ul /* 6 MiB */

static char *shared;

/* ------------------------------------------------------------------ stacks */

#define STACK_THREADS 32
#define STACK_DEPTH_PAGES 48ul

static pthread_mutex_t stack_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t stack_go = PTHREAD_COND_INITIALIZER;
static atomic_int stacks_filled;
static bool stacks_released;
static __thread uint64_t thread_words[1024];
static void *stack_starts[STACK_THREADS];

/* Fills its own stack and its thread-local memory, sleeps while they are evicted, looks again. */
static void *live_on_stack(void *argument)
{
	uint64_t id = (uintptr_t)argument;
	char buffer[STACK_DEPTH_PAGES * PAGE_BYTES];
	char *start = (char *)(((uintptr_t)buffer + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1));
	size_t pages = STACK_DEPTH_PAGES - 1;

	fill(start, pages, seed + id, 0);
	for (size_t i = 0; i < ARRAY_COUNT(thread_words); i++)
		thread_words[i] = mix(id * 4096 + i);
	stack_starts[id] = start;
	atomic_fetch_add(&stacks_filled, 1);
	pthread_mutex_lock(&stack_lock);
	while (!stacks_released)
		pthread_cond_wait(&stack_go, &stack_lock);
	pthread_mutex_unlock(&stack_lock);
	verify(start, pages, seed + id, 0, "stack of a thread");
	for (size_t i = 0; i < ARRAY_COUNT(thread_words); i++)
		CHECK(thread_words[i] == mix(id * 4096 + i), "thread-local word %zu of thread %lu",
		      i, id);
	return argument;
}

static void check_thread_stacks(void)
{
	pthread_t threads[STACK_THREADS];
	pthread_attr_t attributes;

	CHECK_THREAD(pthread_attr_init(&attributes));
	CHECK_THREAD(pthread_attr_setstacksize(&attributes, 512 << 10));
	for (uintptr_t i = 0; i < STACK_THREADS; i++)
		CHECK_THREAD(pthread_create(&threads[i], &attributes, live_on_stack, (void *)i));
	while (atomic_load(&stacks_filled) < STACK_THREADS)
		sched_yield();
	for (size_t i = 0; i < STACK_THREADS; i++)
		evict(stack_starts[i], STACK_DEPTH_PAGES - 1);
	pthread_mutex_lock(&stack_lock);
	stacks_released = true;
	pthread_cond_broadcast(&stack_go);
	pthread_mutex_unlock(&stack_lock);
	for (uintptr_t i = 0; i < STACK_THREADS; i++) {
		void *result;

		CHECK_THREAD(pthread_join(threads[i], &result));
		CHECK(result == (void *)i, "thread %lu returned %p", i, result);
	}
}

/* ------------------------------------------------------------------ threads that end */

/* Check the pages of one stretch, then leave by pthread_exit from a nested call. */
static void *look_and_exit(void *argument)
{
	size_t page = (uintptr_t)argument % (PAGES - 64);

	verify(page_at(shared, page), 64, seed, page, "short-lived thread");
	pthread_exit(NULL);
}

static void check_thread_exit(void)
{
	pthread_attr_t detached;

	shared = evicted_pages(PAGES, seed);
	CHECK_THREAD(pthread_attr_init(&detached));
	CHECK_THREAD(pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED));
	for (uintptr_t round = 0; round < 60; round++) {
		pthread_t threads[4];
		pthread_t loose;

		for (uintptr_t i = 0; i < 4; i++)
			CHECK_THREAD(pthread_create(&threads[i], NULL, look_and_exit,
						    (void *)(mix(round * 8 + i) >> 1)));
		CHECK_THREAD(pthread_create(&loose, &detached, look_and_exit, (void *)round));
		for (int i = 0; i < 4; i++)
			CHECK_THREAD(pthread_join(threads[i], NULL));
	}
	verify(shared, PAGES, seed, 0, "after the threads");
}

static void leave_thread(int signal UNUSED)
{
	pthread_exit(NULL);
}

static atomic_int touching;

/* Touches random pages until a signal ends it, most often inside a fault. */
static void *touch_for_ever(void *argument)
{
	uint64_t chance = (uintptr_t)argument;

	atomic_fetch_add(&touching, 1);
	for (;;) {
		size_t page = random_below(&chance, PAGES);

		CHECK(*(volatile uint64_t *)page_at(shared, page) == page_word(seed, page, 0),
		      "page %zu", page);
	}
	return NULL;
}

static void wait_for_touching(int count)
{
	while (atomic_load(&touching) < count)
		sched_yield();
}

/* Threads ended by a signal while they wait for a page. */
static void check_thread_killed(void)
{
	struct sigaction action = {.sa_handler = leave_thread};

	CHECK_CALL(sigaction(SIGUSR1, &action, NULL));
	shared = evicted_pages(PAGES, seed);
	for (uintptr_t round = 0; round < 40; round++) {
		pthread_t threads[4];

		atomic_store(&touching, 0);
		for (uintptr_t i = 0; i < 4; i++)
			CHECK_THREAD(pthread_create(&threads[i], NULL, touch_for_ever,
						    (void *)(round * 4000 + i * 1000)));
		wait_for_touching(4);
		for (int i = 0; i < 4; i++)
			CHECK_THREAD(pthread_kill(threads[i], SIGUSR1));
		for (int i = 0; i < 4; i++)
			CHECK_THREAD(pthread_join(threads[i], NULL));
		evict(shared, PAGES);
	}
	verify(shared, PAGES, seed, 0, "after the killed threads");
}

/* The whole process ends while eight of its threads fault; the parent looks at the status. */
static void check_exit_group(void)
{
	shared = evicted_pages(PAGES, seed);
	for (int round = 0; round < 12; round++) {
		int status;
		pid_t child = fork();

		CHECK_CALL(child);
		if (!child) {
			pthread_t thread;

			for (uintptr_t i = 0; i < 8; i++)
				CHECK_THREAD(pthread_create(&thread, NULL, touch_for_ever,
							    (void *)(i * 1000)));
			wait_for_touching(8);
			_exit(40 + round);
		}
		CHECK_CALL(waitpid(child, &status, 0));
		CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 40 + round, "status %#x",
		      (unsigned int)status);
	}
	verify(shared, PAGES, seed, 0, "parent of those that ended");
}

#define LAST_THREADS 8
#define LAST_PATIENCE_S 20

/* Shared, so that it never leaves. */
struct last_words {
	_Atomic uint32_t go;
	pthread_mutex_t lock;
};

static struct last_words *map_last_words(void)
{
	struct last_words *last = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(last != MAP_FAILED, "mmap: %s", strerror(errno));
	return last;
}

/* The kernel is not to write to the thread's memory whenever it goes on after a sleep. */
static void forget_rseq(void)
{
#if defined(RSEQ_SIG) && defined(SYS_rseq)
	CHECK_CALL(syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32,
			   RSEQ_FLAG_UNREGISTER, RSEQ_SIG));
#endif
}

/* Sleeps until told to go on, and ends without a look at its stack or anything else of its own. */
static void *sleep_and_end(void *go)
{
	forget_rseq();
#if defined(__x86_64__)
	register uint64_t forever __asm__("r10") = 0;

	__asm__ volatile("1: mov %[futex], %%eax\n\t"
			 "syscall\n\t"
			 "cmpl $0, (%%rdi)\n\t"
			 "je 1b\n\t"
			 "mov %[exit], %%eax\n\t"
			 "xor %%edi, %%edi\n\t"
			 "syscall"
			 :
			 : [futex] "i"(SYS_futex), [exit] "i"(SYS_exit), "D"(go), "S"(0), "d"(0),
			   "r"(forever)
			 : "rax", "rcx", "r11", "memory");
	__builtin_unreachable();
#else
	while (!atomic_load((_Atomic uint32_t *)go))
		usleep(1000);
	return NULL;
#endif
}

static struct timespec patience_end(void)
{
	struct timespec end;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += LAST_PATIENCE_S;
	return end;
}

static uint64_t anonymous_bytes(void)
{
	unsigned long size = 0, resident = 0, file = 0;
	FILE *stream = fopen("/proc/thread-self/statm", "r");

	CHECK(stream && fscanf(stream, "%lu %lu %lu", &size, &resident, &file) == 3, "statm");
	fclose(stream);
	return (resident - file) * PAGE_BYTES;
}

static void *outlive_the_first(void *first)
{
	CHECK_THREAD(pthread_join(*(pthread_t *)first, NULL));
	for (int round = 0; round < 3; round++) {
		usleep(200000); /* whoever asks now and then whether the program lives does so */
		verify(shared, PAGES, seed, 0, "without the first thread");
		press();
		CHECK(!limit_bytes || anonymous_bytes() < limit_bytes / 4 * 5,
		      "%lu bytes are resident", anonymous_bytes());
	}
	dprintf(STDOUT_FILENO, "first_thread_exit: ok\n");
	exit(0);
}

/* What /proc says of a process is then that it has no memory. */
static void check_first_thread_exit(void)
{
	static pthread_t first;
	pthread_t other;

	shared = evicted_pages(PAGES, seed);
	first = pthread_self();
	usleep(150000); /* it has been asked for before, too */
	CHECK_THREAD(pthread_create(&other, NULL, outlive_the_first, &first));
	pthread_exit(NULL);
}

/* The kernel tells who joins a thread that it has ended, in memory that was cold for long. */
static void check_cold_exit(void)
{
	struct last_words *last = map_last_words();
	pthread_t threads[LAST_THREADS];
	struct timespec end;

	shared = evicted_pages(PAGES, seed);
	for (int i = 0; i < LAST_THREADS; i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, sleep_and_end, &last->go));
	for (int round = 0; round < 4; round++)
		press();
	atomic_store(&last->go, 1);
	CHECK_CALL(syscall(SYS_futex, &last->go, 1 /* FUTEX_WAKE */, LAST_THREADS, NULL, NULL, 0));
	usleep(200000); /* they are gone before anybody looks at what is theirs */
	end = patience_end();
	for (int i = 0; i < LAST_THREADS; i++)
		CHECK_THREAD(pthread_timedjoin_np(threads[i], NULL, &end));
	verify(shared, PAGES, seed, 0, "after the threads");
}

static void *sleep_with_lock(void *argument)
{
	struct last_words *last = argument;

	CHECK_THREAD(pthread_mutex_lock(&last->lock));
	atomic_store(&last->go, 1);
	for (;;)
		pause();
	return NULL;
}

/* A process is killed, and one of its threads, cold for long, held a robust mutex. */
static void check_robust_mutex(void)
{
	struct last_words *last = map_last_words();
	struct timespec end;
	pthread_mutexattr_t robust;
	pid_t child;
	int error;

	CHECK_THREAD(pthread_mutexattr_init(&robust));
	CHECK_THREAD(pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED));
	CHECK_THREAD(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST));
	CHECK_THREAD(pthread_mutex_init(&last->lock, &robust));
	child = fork();
	CHECK_CALL(child);
	if (!child) {
		pthread_t thread;

		CHECK_THREAD(pthread_create(&thread, NULL, sleep_with_lock, last));
		while (!atomic_load(&last->go))
			sched_yield();
		shared = evicted_pages(PAGES, seed);
		for (int round = 0; round < 4; round++)
			press();
		raise(SIGKILL);
	}
	CHECK_CALL(waitpid(child, NULL, 0));
	end = patience_end();
	error = pthread_mutex_timedlock(&last->lock, &end);
	CHECK(error == EOWNERDEAD, "lock of a dead owner: %s", strerror(error));
}

static atomic_int step_of_owner;

static void *leave_with_locks(void *locks)
{
	for (int i = 0; i < 2; i++)
		CHECK_THREAD(pthread_mutex_lock(page_at(locks, (size_t)i)));
	atomic_store(&step_of_owner, 1);
	while (atomic_load(&step_of_owner) != 2)
		usleep(1000);
	return NULL;
}

/* A thread ends while it holds mutexes in memory that nobody has touched for long. */
static void check_robust_mutex_cold(void)
{
	const int protocols[] = {PTHREAD_PRIO_NONE, PTHREAD_PRIO_INHERIT};
	void *locks = map_pages(2);
	struct timespec end;
	pthread_mutexattr_t robust;
	pthread_t thread;

	CHECK_THREAD(pthread_mutexattr_init(&robust));
	CHECK_THREAD(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST));
	for (size_t i = 0; i < 2; i++) {
		CHECK_THREAD(pthread_mutexattr_setprotocol(&robust, protocols[i]));
		CHECK_THREAD(pthread_mutex_init(page_at(locks, i), &robust));
	}
	CHECK_THREAD(pthread_create(&thread, NULL, leave_with_locks, locks));
	while (atomic_load(&step_of_owner) != 1)
		sched_yield();
	shared = evicted_pages(PAGES, seed);
	for (int round = 0; round < 8; round++)
		press();
	atomic_store(&step_of_owner, 2);
	CHECK_THREAD(pthread_join(thread, NULL));
	end = patience_end();
	for (size_t i = 0; i < 2; i++) {
		int error = pthread_mutex_timedlock(page_at(locks, i), &end);

		CHECK(error == EOWNERDEAD, "lock %zu of a dead owner: %s", i, strerror(error));
	}
}

/* ------------------------------------------------------------------ faults at once */

static pthread_barrier_t step;

/* Both threads take each page at the same moment, one reads first and one writes first. */
static void *add_on_every_page(void *argument)
{
	uintptr_t id = (uintptr_t)argument;

	for (size_t page = 0; page < PAGES; page++) {
		uint64_t *words = page_at(shared, page);
		_Atomic uint64_t *counter = (_Atomic uint64_t *)&words[17];

		if (page % 64 == 0)
			pthread_barrier_wait(&step);
		if ((page + id) % 2)
			CHECK(words[200] == page_word(seed, page, 200), "page %zu of thread %lu",
			      page, id);
		atomic_fetch_add(counter, 1);
		CHECK(words[300] == page_word(seed, page, 300), "page %zu of thread %lu", page, id);
	}
	return NULL;
}

static void run_on_every_page(unsigned int count)
{
	pthread_t threads[16];

	CHECK_THREAD(pthread_barrier_init(&step, NULL, count));
	for (uintptr_t i = 0; i < count; i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, add_on_every_page, (void *)i));
	for (unsigned int i = 0; i < count; i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	CHECK_THREAD(pthread_barrier_destroy(&step));
}

static void check_two_on_one_page(void)
{
	for (uint64_t round = 0; round < 4; round++) {
		shared = evicted_pages(PAGES, seed);
		run_on_every_page(2);
		for (size_t page = 0; page < PAGES; page++) {
			uint64_t *words = page_at(shared, page);

			CHECK(words[17] == page_word(seed, page, 17) + 2,
			      "page %zu was counted %ld times, not twice", page,
			      (long)(words[17] - page_word(seed, page, 17)));
		}
		unmap_pages(shared, PAGES);
	}
}

#define RANDOM_THREADS 16
#define RANDOM_TOUCHES 4000

static atomic_uint touches_of[PAGES];

static void *touch_at_random(void *argument)
{
	uint64_t chance = seed * 64 + (uintptr_t)argument;

	chance = mix(chance);
	for (int i = 0; i < RANDOM_TOUCHES; i++) {
		size_t page = random_below(&chance, PAGES);
		uint64_t *words = page_at(shared, page);

		CHECK(words[511] == page_word(seed, page, 511), "page %zu, last word", page);
		atomic_fetch_add((_Atomic uint64_t *)&words[1], 1);
		atomic_fetch_add(&touches_of[page], 1);
	}
	return NULL;
}

static void check_many_threads(void)
{
	pthread_t threads[RANDOM_THREADS];

	shared = map_pages(PAGES);
	fill(shared, PAGES, seed, 0);
	evict(shared, PAGES);
	for (uintptr_t i = 0; i < RANDOM_THREADS; i++)
		CHECK_THREAD(pthread_create(&threads[i], NULL, touch_at_random, (void *)i));
	for (int i = 0; i < RANDOM_THREADS; i++)
		CHECK_THREAD(pthread_join(threads[i], NULL));
	for (size_t page = 0; page < PAGES; page++) {
		uint64_t *words = page_at(shared, page);

		words[1] -= touches_of[page];
		verify(words, 1, seed, page, "page without its touches");
	}
}

/* ------------------------------------------------------------------ signals */

static volatile uint64_t *handler_words;
static volatile sig_atomic_t alarms;

/* Faults on memory of its own while the interrupted code may be inside a fault as well. */
static void on_alarm(int signal UNUSED)
{
	size_t page = (size_t)alarms % 256;

	if (handler_words[page * PAGE_WORDS + 5] != page_word(seed + 1, page, 5))
		fail("signal handler: page %zu", page);
	alarms++;
}

static void check_signals_while_faulting(void)
{
	struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	struct itimerval often = {.it_interval = {0, 500}, .it_value = {0, 500}};
	struct itimerval never = {0};

	handler_words = evicted_pages(256, seed + 1);
	shared = evicted_pages(PAGES, seed);
	CHECK_CALL(sigaction(SIGALRM, &action, NULL));
	CHECK_CALL(setitimer(ITIMER_REAL, &often, NULL));
	for (int round = 0; round < 5 || alarms < 100; round++) {
		verify(shared, PAGES, seed, 0, "interrupted");
		press();
	}
	CHECK_CALL(setitimer(ITIMER_REAL, &never, NULL));
}

static sigjmp_buf jump;

static void jump_out(int signal UNUSED)
{
	siglongjmp(jump, 1);
}

/* Leaves code by siglongjmp that may be waiting for a page, and comes back for the page later. */
static void check_longjmp_out_of_faults(void)
{
	struct sigaction action = {.sa_handler = jump_out};
	struct itimerval soon = {.it_value = {0, 700}};
	volatile int jumps = 0;

	shared = evicted_pages(PAGES, seed);
	CHECK_CALL(sigaction(SIGALRM, &action, NULL));
	while (jumps < 100) {
		if (sigsetjmp(jump, 1)) {
			jumps++;
			continue;
		}
		CHECK_CALL(setitimer(ITIMER_REAL, &soon, NULL));
		for (size_t page = (size_t)jumps * 31 % PAGES;; page = (page + 1) % PAGES)
			CHECK(*(volatile uint64_t *)page_at(shared, page) ==
				      page_word(seed, page, 0),
			      "page %zu after %d jumps", page, jumps);
	}
	evict(shared, PAGES);
	verify(shared, PAGES, seed, 0, "after the jumps");
}

static volatile sig_atomic_t on_alternate;

static void use_stack(int signal UNUSED)
{
	char buffer[16 * PAGE_BYTES];
	char *start = (char *)(((uintptr_t)buffer + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1));

	fill(start, 15, seed + 9, 0);
	verify(start, 15, seed + 9, 0, "alternate stack");
	on_alternate++;
}

/* The kernel itself writes the signal frame to the stack that is out. */
static void check_sigaltstack(void)
{
	size_t pages = 256;
	stack_t stack = {.ss_size = pages * PAGE_BYTES};
	struct sigaction action = {.sa_handler = use_stack, .sa_flags = SA_ONSTACK};

	stack.ss_sp = evicted_pages(pages, seed);
	CHECK_CALL(sigaltstack(&stack, NULL));
	CHECK_CALL(sigaction(SIGUSR1, &action, NULL));
	for (int i = 1; i <= 10; i++) {
		evict(stack.ss_sp, pages);
		raise(SIGUSR1);
		CHECK(on_alternate == i, "the handler ran %d times, not %d", (int)on_alternate, i);
	}
	verify(stack.ss_sp, pages / 2, seed, 0, "unused part of the alternate stack");
}

static const struct check checks[] = {
	{"thread_stacks", check_thread_stacks},
	{"thread_exit", check_thread_exit},
	{"thread_killed", check_thread_killed},
	{"first_thread_exit", check_first_thread_exit},
	{"exit_group", check_exit_group},
	{"cold_exit", check_cold_exit},
	{"robust_mutex", check_robust_mutex},
	{"robust_mutex_cold", check_robust_mutex_cold},
	{"two_on_one_page", check_two_on_one_page},
	{"many_threads", check_many_threads},
	{"signals_while_faulting", check_signals_while_faulting},
	{"longjmp_out_of_faults", check_longjmp_out_of_faults},
	{"sigaltstack", check_sigaltstack},
};

int main(int argc, char **argv)
{
	return run_checks(checks, ARRAY_COUNT(checks), argc, argv);
}
