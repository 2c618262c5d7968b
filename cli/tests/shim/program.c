// A program that knows only /dev/kvm: raw ioctls, each check a line "ok NAME", or "not ok" and status 1.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { \
	printf("not ok %s: line %d: %s (errno %d)\n", __func__, __LINE__, #what, errno); exit(1); } } while (0)

struct guest {
	int vm, vcpu[4];
	struct kvm_run *run[4];
	uint8_t *memory;
};

static int kvm;
enum { SIZE = 1 << 20 };

static struct guest make(const uint8_t *code, size_t length, int vcpus)
{
	struct guest g = { .vm = ioctl(kvm, KVM_CREATE_VM, 0) };
	CHECK(g.vm >= 0);
	g.memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(g.memory != MAP_FAILED);
	memcpy(g.memory + 0x1000, code, length);
	struct kvm_userspace_memory_region slot = {
		.memory_size = SIZE, .userspace_addr = (uintptr_t)g.memory };
	CHECK(ioctl(g.vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	for (int i = 0; i < vcpus; i++) {
		g.vcpu[i] = ioctl(g.vm, KVM_CREATE_VCPU, i);
		CHECK(g.vcpu[i] >= 0);
		g.run[i] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, g.vcpu[i], 0);
		CHECK(g.run[i] != MAP_FAILED);
		struct kvm_sregs sregs;
		CHECK(ioctl(g.vcpu[i], KVM_GET_SREGS, &sregs) == 0);
		sregs.cs.base = sregs.cs.selector = 0;
		CHECK(ioctl(g.vcpu[i], KVM_SET_SREGS, &sregs) == 0);
		struct kvm_regs regs = { .rip = 0x1000, .rflags = 2, .rsp = 0x8000, .rax = 0x41 + i };
		CHECK(ioctl(g.vcpu[i], KVM_SET_REGS, &regs) == 0);
	}
	return g;
}

static int out(struct guest *g, int i, uint16_t port)
{
	struct kvm_run *run = g->run[i];
	CHECK(ioctl(g->vcpu[i], KVM_RUN, 0) == 0);
	CHECK(run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_OUT);
	CHECK(run->io.port == port && run->io.size == 1 && run->io.count == 1);
	return *((uint8_t *)run + run->io.data_offset);
}

static const uint8_t OUT_HLT[] = { 0xe6, 0x10, 0xf4 };  // OUT 0x10,AL; HLT
static const uint8_t SPIN[] = { 0xeb, 0xfe };

static void real_mode(void)
{
	struct guest g = make(OUT_HLT, sizeof OUT_HLT, 1);
	CHECK(out(&g, 0, 0x10) == 0x41);
	CHECK(ioctl(g.vcpu[0], KVM_RUN, 0) == 0 && g.run[0]->exit_reason == KVM_EXIT_HLT);
}

static void long_mode(void)
{
	// MOV RAX,0x5A00000000; SHR RAX,32; OUT 0x10,AL
	static const uint8_t code[] = { 0x48, 0xb8, 0, 0, 0, 0, 0x5a, 0, 0, 0, 0x48, 0xc1, 0xe8, 0x20, 0xe6, 0x10 };
	struct guest g = make(code, sizeof code, 1);
	uint64_t *table = (uint64_t *)(g.memory + 0x2000);
	table[0] = 0x3003;
	table[512] = 0x4003;
	table[1024] = 0x83;
	struct kvm_sregs sregs;
	CHECK(ioctl(g.vcpu[0], KVM_GET_SREGS, &sregs) == 0);
	sregs.cr3 = 0x2000;
	sregs.cr4 = 0x20;
	sregs.cr0 = 0x80000011;
	sregs.efer = 0x500;
	sregs.cs = (struct kvm_segment){ .limit = -1, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	sregs.ds = sregs.es = sregs.ss = (struct kvm_segment){
		.limit = -1, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	CHECK(ioctl(g.vcpu[0], KVM_SET_SREGS, &sregs) == 0);
	CHECK(out(&g, 0, 0x10) == 0x5a);
}

static void *runner(void *argument)
{
	struct guest *g = argument;
	static int next;
	int i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
	return (void *)(intptr_t)out(g, i, 0x10);
}

static void threads(void)
{
	struct guest g = make(OUT_HLT, sizeof OUT_HLT, 4);
	pthread_t thread[4];
	intptr_t sum = 0;
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&thread[i], NULL, runner, &g) == 0);
	for (int i = 0; i < 4; i++) {
		void *value;
		CHECK(pthread_join(thread[i], &value) == 0);
		sum += (intptr_t)value;
	}
	CHECK(sum == 0x41 + 0x42 + 0x43 + 0x44);
}

static volatile int alarms;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
}

static void signals(void)
{
	struct guest g = make(SPIN, sizeof SPIN, 1);
	struct sigaction action = { .sa_handler = on_alarm };
	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	struct itimerval timer = { .it_value.tv_usec = 50000 };
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
	CHECK(ioctl(g.vcpu[0], KVM_RUN, 0) == -1 && errno == EINTR);
	CHECK(alarms == 1 && g.run[0]->exit_reason == KVM_EXIT_INTR);
}

static void forks(void)
{
	struct guest g = make(SPIN, sizeof SPIN, 1);
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0)
		_exit(!(ioctl(g.vcpu[0], KVM_RUN, 0) == -1 && errno == EIO
			&& ioctl(g.vm, KVM_CREATE_VCPU, 1) == -1 && errno == EIO));
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void copies(void)
{
	struct guest g = make(OUT_HLT, sizeof OUT_HLT, 1);
	int copy = dup(g.vcpu[0]);
	CHECK(copy >= 0 && close(g.vcpu[0]) == 0 && close(g.vm) == 0);
	CHECK(ioctl(g.vcpu[0], KVM_RUN, 0) == -1 && errno == EBADF);
	g.vcpu[0] = copy;
	CHECK(out(&g, 0, 0x10) == 0x41);
}

static void *closer(void *argument)
{
	struct guest *g = argument;
	usleep(30000);
	close(g->vm);
	close(g->vcpu[0]);
	usleep(30000);
	g->run[0]->immediate_exit = 1;
	return NULL;
}

static void closed_mid_run(void)
{
	struct guest g = make(SPIN, sizeof SPIN, 1);
	pthread_t thread;
	CHECK(pthread_create(&thread, NULL, closer, &g) == 0);
	CHECK(ioctl(g.vcpu[0], KVM_RUN, 0) == -1 && errno == EINTR);
	CHECK(pthread_join(thread, NULL) == 0);
}

static void two_machines(void)
{
	struct guest a = make(OUT_HLT, sizeof OUT_HLT, 1), b = make(OUT_HLT, sizeof OUT_HLT, 2);
	CHECK(out(&b, 1, 0x10) == 0x42 && out(&a, 0, 0x10) == 0x41 && out(&b, 0, 0x10) == 0x41);
}

int main(void)
{
	static const struct { const char *name; void (*check)(void); } checks[] = {
		{ "real mode", real_mode }, { "long mode", long_mode }, { "threads", threads },
		{ "signals", signals }, { "forks", forks }, { "copies", copies },
		{ "closed mid-run", closed_mid_run }, { "two machines", two_machines },
	};
	setbuf(stdout, NULL);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0 || ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
		puts("not ok /dev/kvm");
		return 1;
	}
	for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
		checks[i].check();
		printf("ok %s\n", checks[i].name);
	}
	return 0;
}
