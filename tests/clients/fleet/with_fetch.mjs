const answer = await fetch(process.argv[2]);
if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}: ${await answer.text()}`);
console.log(await answer.json());
