package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/admin"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
)

const waitTime = 60 * time.Second

var instances atomic.Int64

// A setting is what a case works with: names of its own, and clients that are shut down after it.
type setting struct {
	nameserver string
	topic      string
	group      string
	endings    []func() error
}

func newSetting(nameserver, prefix, name string) *setting {
	topic := prefix + "-" + name
	return &setting{nameserver: nameserver, topic: topic, group: topic + "-group"}
}

func (s *setting) close() {
	for at := len(s.endings) - 1; at >= 0; at-- {
		if err := s.endings[at](); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// producerOptions are the client's defaults, but for names that must differ.
func (s *setting) producerOptions() []producer.Option {
	return []producer.Option{
		producer.WithGroupName(s.group + "-producer"),
		producer.WithInstanceName(instance()),
		producer.WithNameServer(primitive.NamesrvAddr{s.nameserver}),
	}
}

func (s *setting) producer(more ...producer.Option) (rocketmq.Producer, error) {
	p, err := rocketmq.NewProducer(append(s.producerOptions(), more...)...)
	if err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, err
	}
	s.endings = append(s.endings, p.Shutdown)
	return p, nil
}

type handler func(context.Context, ...*primitive.MessageExt) (consumer.ConsumeResult, error)

// consume starts a consumer of this case's group, from the earliest message.
func (s *setting) consume(selector consumer.MessageSelector, handle handler, more ...consumer.Option) error {
	return s.consumeFrom(s.group, s.topic, selector, handle, more...)
}

func (s *setting) consumeFrom(
	group, topic string, selector consumer.MessageSelector, handle handler, more ...consumer.Option,
) error {
	options := append([]consumer.Option{
		consumer.WithGroupName(group),
		consumer.WithInstance(instance()),
		consumer.WithNameServer(primitive.NamesrvAddr{s.nameserver}),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
	}, more...)
	c, err := rocketmq.NewPushConsumer(options...)
	if err != nil {
		return err
	}
	if err := c.Subscribe(topic, selector, handle); err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	s.endings = append(s.endings, c.Shutdown)
	return nil
}

func (s *setting) awaitTopic(topic string) error {
	resolver := primitive.NewPassthroughResolver([]string{s.nameserver})
	a, err := admin.NewAdmin(admin.WithResolver(resolver))
	if err != nil {
		return err
	}
	s.endings = append(s.endings, a.Close)
	return await(topic, waitTime, func() bool {
		queues, err := a.FetchPublishMessageQueues(context.Background(), topic)
		return err == nil && len(queues) > 0
	})
}

func (s *setting) message(body string) *primitive.Message {
	return primitive.NewMessage(s.topic, []byte(body))
}

// Clients of one process with the same instance name would share one id.
func instance() string {
	return fmt.Sprintf("%d-%d", os.Getpid(), instances.Add(1))
}

// A collection counts bodies.
type collection struct {
	lock  sync.Mutex
	times map[string]int
}

func newCollection() *collection {
	return &collection{times: map[string]int{}}
}

func (c *collection) add(body string) int {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.times[body]++
	return c.times[body]
}

func (c *collection) handle(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
	for _, message := range messages {
		c.add(string(message.Body))
	}
	return consumer.ConsumeSuccess, nil
}

func (c *collection) size() int {
	c.lock.Lock()
	defer c.lock.Unlock()
	return len(c.times)
}

func (c *collection) count(body string) int {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.times[body]
}

// exactly fails unless these bodies were seen, once each, and no others.
func (c *collection) exactly(wanted ...string) error {
	c.lock.Lock()
	defer c.lock.Unlock()
	for _, body := range wanted {
		if c.times[body] != 1 {
			return fmt.Errorf("%s: seen %d times; all: %v", body, c.times[body], c.times)
		}
	}
	if len(c.times) != len(wanted) {
		return fmt.Errorf("seen: %v", c.times)
	}
	return nil
}

func await(what string, limit time.Duration, condition func() bool) error {
	deadline := time.Now().Add(limit)
	for !condition() {
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %s", limit, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}
